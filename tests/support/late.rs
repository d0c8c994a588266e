//! Arguments that start anywhere in memory.
use super::call::Views;
use super::faults::{Called, Fault, Operation, saved_by_most};
use approx::relative_eq;
use batchnorm::cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use batchnorm::{Argument, Element, Engine, Shape};

/// One argument an element behind the start of its memory, the others where theirs start.
struct Late(&'static str);

impl Views<batchnorm::Device> for Late {
    fn view<'a, T: Element>(&self, argument: Argument, buf: &'a CudaSlice<T>) -> CudaView<'a, T> {
        buf.slice(usize::from(argument.name == self.0)..)
    }
    fn bytes<'a>(&self, argument: Argument, buf: &'a CudaSlice<u8>) -> CudaView<'a, u8> {
        buf.slice(usize::from(argument.name == self.0)..)
    }
    fn view_mut<'a, T: Element>(
        &self,
        argument: Argument,
        buf: &'a mut CudaSlice<T>,
    ) -> CudaViewMut<'a, T> {
        buf.slice_mut(usize::from(argument.name == self.0)..)
    }
}

/// Every argument of every operation, if it alone starts at an address that is a multiple of no more
/// than its element: as near as where all start at 256 bytes, or refused as it is there.
pub fn serves_arguments_that_start_anywhere<G: Engine<Memory = batchnorm::Device>>(engine: &G) {
    fn serves<E: Element, G: Engine<Memory = batchnorm::Device>>(engine: &G, bar: f64) {
        let shape = Shape::new(&[6, 4, 80], 1).unwrap();
        let (saved, _, fault) = saved_by_most::<E, G>(engine, &shape);
        for operation in Operation::known_to(engine) {
            let run = |fault| {
                let desk = operation.desk(engine, fault, &shape);
                let Called { held, result } =
                    operation.call::<E, G>(&desk, &shape, &saved, Late(fault.late));
                (held.values(), result)
            };
            let (right, at_start) = run(fault);
            for Argument { name, .. } in operation.arguments::<E, G>(engine, fault) {
                let (got, result) = run(Fault { late: name, ..fault });
                assert_eq!(result, at_start, "{operation:?}: {name}");
                assert_eq!(got.len(), right.len());
                for ((argument, got), (_, right)) in got.iter().zip(&right) {
                    let got = &got[usize::from(argument.name == name)..];
                    assert_eq!(got.len(), right.len());
                    for (got, right) in got.iter().zip(right) {
                        let near = relative_eq!(got, right, epsilon = bar, max_relative = bar);
                        let what = argument.name;
                        assert!(near, "{operation:?}, late {name}: {what} is {got}, not {right}");
                    }
                }
            }
        }
    }
    serves::<f32, G>(engine, 1e-5);
    serves::<half::f16, G>(engine, 2e-3);
}
