//! Shapes of any dims and strides: the same verdict, and the same fold, as by walking over every element.
use super::bytes::Bytes;
use crate::support::run::channel_of;
use batchnorm::{Error, MemoryOrder, Result, Shape};

/// Up to so many elements a strided shape is walked over.
const WALKED: usize = 4096;

pub fn run(input: &[u8]) {
    let mut input = Bytes(input);
    let kind = input.below(4);
    let dims: Vec<usize> = (0..input.below(7)).map(|_| size(&mut input)).collect();
    let axis = if input.one_in(16) { size(&mut input) } else { input.below(dims.len()) };
    match kind {
        0 => folded(Shape::new(&dims, axis), &dims, axis),
        1 => match dims.split_first() {
            Some((&batch, sample)) => {
                // A product in 128 bits, as far as that goes.
                let positions = sample.iter().fold(1u128, |p, &d| p.saturating_mul(d as u128));
                let shape = Shape::per_activation(&dims);
                match usize::try_from(positions) {
                    Ok(positions) if sample.iter().all(|&d| d > 0) => {
                        folded(shape, &[batch, positions], 1)
                    }
                    _ => refused(shape),
                }
            }
            None => refused(Shape::per_activation(&dims)),
        },
        2 => {
            let rank = dims.len() as isize;
            let axes: Vec<isize> = (0..input.below(4))
                .map(|_| input.below(2 * dims.len() + 1) as isize - rank)
                .collect();
            let shape = Shape::with_axes(&dims, &axes);
            if let [axis] = axes[..] {
                assert_eq!(shape, Shape::from_end(&dims, axis));
            }
            shape.map_or_else(|e| refused(Err(e)), |shape| consistent(&shape, &dims));
        }
        _ => {
            let strides = strides(&mut input, &dims);
            ordered(&dims, &strides, axis);
            strided(Shape::strided(&dims, &strides, axis), &dims, &strides, axis);
        }
    }
}

fn size(input: &mut Bytes) -> usize {
    match input.byte() {
        byte @ 0..200 => usize::from(byte) % 8,
        byte @ 200..220 => 1 << (byte % 64),
        byte @ 220..230 => (1 << (usize::BITS / 2)) + usize::from(byte) - 225,
        byte @ 230..240 => usize::MAX - usize::from(byte - 230),
        byte @ 240..245 => usize::MAX / usize::from(byte - 238),
        _ => input.number() as usize,
    }
}

/// Dense ones in some order of the axes, most times; or some of them not.
fn strides(input: &mut Bytes, dims: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..dims.len()).collect();
    (1..dims.len()).for_each(|k| order.swap(k, input.below(k + 1)));
    let (mut strides, mut dense) = (vec![0; dims.len()], 1usize);
    for axis in order {
        strides[axis] = dense;
        dense = dense.wrapping_mul(dims[axis]);
    }
    for (stride, &dim) in strides.iter_mut().zip(dims) {
        if input.one_in(if dim == 1 { 2 } else { 12 }) {
            *stride = size(input);
        }
    }
    if input.one_in(20) {
        strides.push(1);
    }
    strides
}

fn refused(shape: Result<Shape>) {
    let error = shape.expect_err("what has no fold");
    assert!(matches!(error, Error::Invalid { .. }) && !error.to_string().is_empty(), "{error:?}");
}

/// Whether such dims are a tensor at all.
fn possible(dims: &[usize], axis: usize) -> bool {
    let nonzero = dims.iter().filter(|&&d| d > 0);
    let elements = nonzero.fold(1u128, |product, &d| product.saturating_mul(d as u128));
    dims.get(axis).is_some_and(|&channels| channels > 0) && elements <= usize::MAX as u128
}

fn folded(shape: Result<Shape>, dims: &[usize], axis: usize) {
    if !possible(dims, axis) {
        return refused(shape);
    }
    let shape = shape.expect("a tensor");
    let product = |dims: &[usize]| dims.iter().product::<usize>();
    let (outer, inner) = (product(&dims[..axis]), product(&dims[axis + 1..]));
    assert_eq!((shape.outer(), shape.channels(), shape.inner()), (outer, dims[axis], inner));
    assert_eq!(shape.batch(), if axis == 0 { 1 } else { dims[0] });
    consistent(&shape, dims);
}

/// None of its numbers overflows, nor panics where it is shown.
fn consistent(shape: &Shape, dims: &[usize]) {
    assert_eq!(shape.len(), dims.iter().product::<usize>());
    assert_eq!(shape.per_channel() * shape.channels(), shape.len());
    assert_eq!(shape.is_empty(), dims.contains(&0));
    assert!(shape.to_string().contains(&format!("{} x", shape.channels())));
}

/// The order of memory has the same verdict as a shape of it, and permutes the tensor to row-major memory and back.
fn ordered(dims: &[usize], strides: &[usize], axis: usize) {
    let (order, shape) = (MemoryOrder::new(dims, strides), Shape::strided(dims, strides, axis));
    let order = match order {
        Ok(order) => order,
        Err(error) => return refused(shape.and(Err(error))),
    };
    assert_eq!(order.shape(axis), shape, "{dims:?}, {strides:?}, {axis}");
    let axes = order.axes();
    for (place, &axis) in axes.iter().enumerate() {
        assert_eq!((order.inverse()[axis], order.place_of(axis)), (place, Some(place)));
    }
    assert_eq!(order.place_of(dims.len()), None);
    let of = |values: &[usize]| -> Vec<usize> { axes.iter().map(|&axis| values[axis]).collect() };
    let permuted = MemoryOrder::new(&of(dims), &of(strides)).expect("as dense as before");
    assert!(permuted.is_row_major(), "{dims:?}, {strides:?}: {axes:?}");
    assert_eq!(of(&order.strides()), MemoryOrder::row_major(&of(dims)).expect("as many").strides());
    assert_eq!(order.check("x", dims, strides), Ok(()));
    // Another stride of an axis of more than one element is another order, or none.
    if let Some(k) = (0..dims.len()).find(|&k| dims[k] > 1).filter(|_| !dims.contains(&0)) {
        let mut others = strides.to_vec();
        others[k] = others[k].wrapping_add(1);
        assert!(order.check("x", dims, &others).is_err(), "{dims:?}, {strides:?}");
    }
}

fn strided(shape: Result<Shape>, dims: &[usize], strides: &[usize], axis: usize) {
    if !possible(dims, axis) || dims.len() != strides.len() {
        return refused(shape);
    }
    let elements = dims.iter().product::<usize>();
    if elements == 0 {
        return consistent(&shape.expect("an empty tensor"), dims);
    }
    if elements > WALKED {
        return shape.map_or_else(|e| refused(Err(e)), |shape| consistent(&shape, dims));
    }
    // Which channel lies where; none where memory has gaps or overlaps.
    let mut memory = vec![None; elements];
    for k in 0..elements {
        let (mut rest, mut place, mut channel) = (k, 0u128, 0);
        for (a, (&dim, &stride)) in dims.iter().zip(strides).enumerate() {
            let index = rest % dim;
            rest /= dim;
            place += index as u128 * stride as u128;
            channel = if a == axis { index } else { channel };
        }
        let place = usize::try_from(place).ok().filter(|&place| place < elements);
        match place.map(|place| &mut memory[place]) {
            Some(free @ None) => *free = Some(channel),
            _ => return refused(shape),
        }
    }
    let shape = shape.expect("dense memory");
    consistent(&shape, dims);
    for (place, channel) in memory.into_iter().enumerate() {
        assert_eq!(
            Some(channel_of(&shape, place)),
            channel,
            "{dims:?}, {strides:?}, {axis}: {place}"
        );
    }
}
