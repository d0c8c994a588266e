//! Code compiled for the vector units of the machine it runs on. One of two files with `unsafe`.

/// Runs `f`, compiled once for each vector width and called for the widest this machine has.
///
/// Whatever `f` calls must be `#[inline(always)]`, itself included (`#[inline(always)] || ..`):
/// only what is inlined here is compiled with those instructions. Results do not depend on the
/// width: the code sums in a fixed number of lanes and never fuses a multiplication with an
/// addition.
#[inline]
pub(super) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2")]
        fn wide<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx2")]
        fn middle<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        use std::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
            // SAFETY: the machine has the features that `wide` is compiled with.
            return unsafe { wide(f) };
        }
        if has!("avx2") {
            // SAFETY: the machine has the feature that `middle` is compiled with.
            return unsafe { middle(f) };
        }
    }
    f()
}
