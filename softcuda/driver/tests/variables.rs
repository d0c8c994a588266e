//! Variables of modules, and what kernels say.
#![allow(unsafe_code)]

mod common;

use std::sync::Arc;

use common::{code, device, shape};
use cudarc::driver::{CudaContext, CudaModule, PushKernelArg, result, sys::CUresult};

const TABLE: &str = "
.version 7.8
.target sm_75
.address_size 64
.extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
.extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);
.visible .global .align 4 .u32 table[4] = {1, 2, 3, 4};
.visible .global .align 8 .u64 second = generic(table)+4;
.visible .const .align 4 .u32 factor;
.global .align 1 .b8 said[10] = {116, 104, 105, 115, 32, 37, 100, 10};
.global .align 1 .b8 why[6] = {110, 32, 60, 32, 57};
.visible .entry twice(.param .u64 out)
{
    .reg .b32 %r<9>;
    .reg .b64 %d<9>;
    ld.param.u64 %d1, [out];
    ld.global.u64 %d2, [second];
    ld.global.u32 %r1, [%d2];
    ld.const.u32 %r2, [factor];
    mul.lo.u32 %r1, %r1, %r2;
    st.global.u32 [%d1], %r1;
    st.global.u32 [table+12], %r1;
    ret;
}
.visible .entry past(.param .u64 out)
{
    .reg .b32 %r<9>;
    ld.global.u32 %r1, [table+16];
    ret;
}
.visible .entry says(.param .u64 out)
{
    .local .align 8 .b8 values[8];
    .reg .b32 %r<9>;
    .reg .b64 %d<9>;
    st.local.u32 [values], 42;
    mov.u64 %d1, values;
    cvta.local.u64 %d1, %d1;
    mov.u64 %d2, said;
    call (%r1), vprintf, (%d2, %d1);
    ret;
}
.visible .entry asserts(.param .u64 out)
{
    .reg .b64 %d<9>;
    mov.u64 %d1, why;
    call __assertfail, (%d1, %d1, 7, %d1, 1);
    ret;
}";

fn load(context: &Arc<CudaContext>) -> Arc<CudaModule> {
    context.load_module(TABLE.into()).unwrap()
}

#[test]
fn a_variable_is_memory_that_host_and_kernels_use() {
    let (device, context) = device(0);
    let stream = context.default_stream();
    let module = load(&context);
    let mut factor = module.get_global("factor", &stream).unwrap();
    assert_eq!(factor.len(), 4);
    assert_eq!(stream.clone_dtoh(&factor).unwrap(), [0; 4]);
    stream.memcpy_htod(&10u32.to_le_bytes(), &mut factor).unwrap();
    let table = module.get_global("table", &stream).unwrap();
    let words = |bytes: Vec<u8>| {
        let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        words.collect::<Vec<_>>()
    };
    assert_eq!(words(stream.clone_dtoh(&table).unwrap()), [1, 2, 3, 4]);
    let mut out = stream.alloc_zeros::<u32>(1).unwrap();
    let twice = module.load_function("twice").unwrap();
    // SAFETY: the kernel takes a pointer to a word.
    unsafe { stream.launch_builder(&twice).arg(&mut out).launch(shape(1, 1)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [20]);
    assert_eq!(words(stream.clone_dtoh(&table).unwrap()), [1, 2, 3, 20]);
    // Each load of the text has its own.
    let other = load(&context);
    let fresh = other.get_global("table", &stream).unwrap();
    assert_eq!(words(stream.clone_dtoh(&fresh).unwrap()), [1, 2, 3, 4]);
    assert_eq!(code(module.get_global("nothing", &stream)), CUresult::CUDA_ERROR_NOT_FOUND);
    // SAFETY: an address, which is refused.
    let freed = unsafe { result::free_sync(out_of(&table, &stream)) };
    assert_eq!(code(freed), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(device.refusals().len(), 1, "{:?}", device.refusals());
    assert!(device.refusals()[0].ends_with("is a variable of a module"));
    drop((out, table, factor, fresh));
    stream.synchronize().unwrap();
    let with_both = device.used();
    drop(other);
    assert_eq!(with_both - device.used(), 5 * 256);
    drop((twice, module, stream, context));
    assert_eq!(device.leaks(), [""; 0]);
    assert_eq!(device.used(), 0);
    assert_eq!(device.faults(), [""; 0]);
}

fn out_of(
    slice: &cudarc::driver::CudaViewMut<'_, u8>,
    stream: &Arc<cudarc::driver::CudaStream>,
) -> u64 {
    use cudarc::driver::DevicePtr;
    slice.device_ptr(stream).0
}

#[test]
fn the_end_of_a_variable_is_a_bound() {
    let (device, context) = device(0);
    let stream = context.default_stream();
    let past = load(&context).load_function("past").unwrap();
    // SAFETY: the kernel looks at no parameter.
    unsafe { stream.launch_builder(&past).arg(&0u64).launch(shape(1, 1)) }.unwrap();
    assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let fault = &device.faults()[0];
    assert!(fault.contains("past the end of an allocation of 16 bytes"), "{fault}");
}

#[test]
fn what_a_kernel_says_is_told() {
    let (device, context) = device(0);
    let stream = context.default_stream();
    let module = load(&context);
    for (kernel, expected) in
        [("says", CUresult::CUDA_SUCCESS), ("asserts", CUresult::CUDA_ERROR_ASSERT)]
    {
        let function = module.load_function(kernel).unwrap();
        // SAFETY: the kernels look at no parameter.
        unsafe { stream.launch_builder(&function).arg(&0u64).launch(shape(1, 2)) }.unwrap();
        assert_eq!(code(stream.synchronize()), expected, "{kernel}");
    }
    assert_eq!(device.printed(), ["this 42\nthis 42\n"]);
    let fault = &device.faults()[0];
    assert!(fault.contains("assertion in kernel asserts"), "{fault}");
    assert!(fault.contains("`n < 9` does not hold, n < 9:7, n < 9"), "{fault}");
}

#[test]
fn variables_that_do_not_fit_are_refused() {
    let (device, context) = device(4);
    let head = ".version 7.8\n.target sm_75\n.address_size 64\n";
    let load = |text: &str| code(context.load_module(format!("{head}{text}\n").as_str().into()));
    assert_eq!(load(".global .b8 x[99999999];"), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(load(".const .b8 x[65537];"), CUresult::CUDA_ERROR_INVALID_PTX);
    assert_eq!(load(".global .align 512 .b8 x[8];"), CUresult::CUDA_ERROR_INVALID_PTX);
    assert!(device.refusals()[0].contains("65537 bytes of constant memory; there are 65536"));
    assert_eq!(device.used(), 0);
}
