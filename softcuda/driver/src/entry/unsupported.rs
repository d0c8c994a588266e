//! What cudarc can call and this device does not have: memory of other programs, clusters.

use crate::code::Code;

macro_rules! unsupported {
    ($($name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> Code {
                Code::NotSupported
            }
        )*
    };
}

unsupported! {
    cuImportExternalMemory
    cuDestroyExternalMemory
    cuExternalMemoryGetMappedBuffer
    cuOccupancyMaxActiveClusters
    cuOccupancyMaxPotentialClusterSize
}
