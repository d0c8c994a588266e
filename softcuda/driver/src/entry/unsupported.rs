//! What cudarc can call and this device does not have: managed memory, memory of other programs, clusters.

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
    cuMemAllocManaged
    cuMemAdvise_v2
    cuMemPrefetchAsync_v2
    cuStreamAttachMemAsync
    cuImportExternalMemory
    cuDestroyExternalMemory
    cuExternalMemoryGetMappedBuffer
    cuOccupancyMaxActiveClusters
    cuOccupancyMaxPotentialClusterSize
}
