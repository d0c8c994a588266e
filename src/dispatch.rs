//! From a dtype that is a value to code that is generic over the type.
use crate::DType;

/// Evaluates an expression with a name for the type that a [`DType`] means: the table of four types that code which
/// learns its dtype at run time would write.
///
/// `dispatch!(dtype, E => expression)`: within the expression `E` is `f64`, `f32`, `half::f16` or `half::bf16`, and the
/// type of its parameters and statistics is `E::Acc`, of [`Element`](crate::Element). The expression is compiled once for
/// each, to the same type; what it borrows and returns by `?` or `return` is that of the code around it. A dtype that a
/// later version adds is served without a change.
///
/// ```
/// use batchnorm::{Cpu, DType, Element, Engine, ForwardTrain, Host, Result, Shape, dispatch};
///
/// /// Bytes that hold values of some dtype, as a framework keeps its tensors.
/// fn normalize(dtype: DType, shape: &Shape, x: &[u8], y: &mut [u8]) -> Result<()> {
///     dispatch!(dtype, E => {
///         let x = values::<E>(x);
///         let mut out = vec![E::default(); shape.len()];
///         Cpu::default().forward_train(shape, ForwardTrain::<Host, E>::new(&x, &mut out))?;
///         y.copy_from_slice(&bytes(&out));
///     });
///     Ok(())
/// }
/// # // Without unsafe code, and for f32 alone in both.
/// # fn values<E: Element>(bytes: &[u8]) -> Vec<E> {
/// #     use batchnorm::Real;
/// #     let f32s = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
/// #     f32s.map(|v| E::narrow(E::Acc::from_f64(v.into()))).collect()
/// # }
/// # fn bytes<E: Element>(values: &[E]) -> Vec<u8> {
/// #     use batchnorm::Real;
/// #     values.iter().flat_map(|v| (v.widen().to_f64() as f32).to_le_bytes()).collect()
/// # }
/// # let x: Vec<u8> = [1f32, 2.0, 3.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
/// # let mut y = vec![0; 16];
/// # normalize(DType::F32, &Shape::new(&[4, 1], 1)?, &x, &mut y)?;
/// # assert!((values::<f32>(&y)[1] + 0.534_522).abs() < 1e-4);
/// assert_eq!(dispatch!(DType::Bf16, E => size_of::<E>()), 2);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[macro_export]
macro_rules! dispatch {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $crate::dispatch::Stored::of($dtype) {
            $crate::dispatch::Stored::F64 => {
                #[allow(dead_code)]
                type $E = f64;
                $body
            }
            $crate::dispatch::Stored::F32 => {
                #[allow(dead_code)]
                type $E = f32;
                $body
            }
            $crate::dispatch::Stored::F16 => {
                #[allow(dead_code)]
                type $E = $crate::dispatch::f16;
                $body
            }
            $crate::dispatch::Stored::Bf16 => {
                #[allow(dead_code)]
                type $E = $crate::dispatch::bf16;
                $body
            }
        }
    };
}

/// The dtypes there are, for the macro: other crates cannot list those of [`DType`], to which more may come.
#[derive(Debug, Clone, Copy)]
pub enum Stored {
    F64,
    F32,
    F16,
    Bf16,
}

impl Stored {
    pub const fn of(dtype: DType) -> Self {
        match dtype {
            DType::F64 => Self::F64,
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::Bf16 => Self::Bf16,
        }
    }
}

pub use half::{bf16, f16};

#[cfg(test)]
mod tests {
    use crate::{DType, Element};

    #[test]
    fn every_dtype_is_the_type_of_that_name() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::Bf16] {
            let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let (own, sums, size) = dispatch!(dtype, E => {
                (E::DTYPE, <<E as Element>::Acc as Element>::DTYPE, size_of::<E>())
            });
            assert_eq!((own, sums, size), (dtype, acc, dtype.size()));
        }
    }

    #[test]
    fn a_body_borrows_and_returns_as_the_code_around_it() {
        fn pushed<T: Copy>(dtype: DType, tags: &mut Vec<T>, tag: T) -> Option<usize> {
            let len = dispatch!(dtype, E => {
                tags.push(tag);
                if size_of::<E>() < 4 {
                    return None;
                }
                tags.len()
            });
            Some(len)
        }
        let mut tags = vec![];
        assert_eq!(pushed(DType::F32, &mut tags, 'a'), Some(1));
        assert_eq!(pushed(DType::F16, &mut tags, 'b'), None);
        assert_eq!(pushed(DType::F64, &mut tags, 'c'), Some(3));
        assert_eq!(dispatch!(DType::F16, Unused => 7), 7);
    }
}
