//! One body of a test, one line per engine.

/// Makes a test of every engine from each function that is generic over the engine.
///
/// ```ignore
/// every_engine![y_agrees, gradients_agree];
/// ```
///
/// This is the place where engines are listed.
macro_rules! every_engine {
    ($($test:ident),+ $(,)?) => {
        every_engine!(@ reference, batchnorm::Reference; $($test),+);
        every_engine!(@ cpu, batchnorm::Cpu::default(); $($test),+);
    };
    (@ $name:ident, $engine:expr; $($test:ident),+) => {
        mod $name {
            $(#[test]
            fn $test() {
                super::$test(&$engine);
            })+
        }
    };
}
pub(crate) use every_engine;
