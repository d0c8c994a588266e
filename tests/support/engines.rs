//! One body of a test, one line per engine.

/// Makes a module of tests for every engine from functions that are generic over the engine.
///
/// ```ignore
/// engines! {
///     [reference: Reference, cpu: Cpu::default()]
///     run [y_agrees, gradients_agree]
/// }
/// ```
///
/// The engine is an expression in the test's body: one that needs a device may `return` without.
macro_rules! engines {
    ([$($name:ident: $engine:expr),* $(,)?] run $tests:tt) => {
        $(mod $name { $crate::support::engines::engines!(@one $engine; $tests); })*
    };
    (@one $engine:expr; [$($test:ident),* $(,)?]) => {
        #[allow(unused_imports)]
        use super::*;
        $(#[test]
        fn $test() {
            super::$test(&$engine);
        })*
    };
}
pub(crate) use engines;
