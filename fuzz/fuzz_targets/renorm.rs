#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| batchnorm_fuzz::targets::renorm(input));
