//! The entry points: each translates pointers and calls safe code.

pub mod control;

use std::ffi::c_int;

use softlibrary::{Number, Queue};

use crate::{
    generator::{Distribution, GENERATORS, Generator, LOG, call, on_generator},
    status::{Refusal, Status},
};

/// The kinds of pseudo-random generators.
const PSEUDO: [std::ops::RangeInclusive<u32>; 2] = [100..=101, 121..=161];

/// Gives a value to the caller.
///
/// # Safety
/// `out` must be null or valid for writing a `T`.
unsafe fn put<T>(out: *mut T, value: T) -> Result<(), Refusal> {
    if out.is_null() {
        return Status::OutOfRange.because("the result is null");
    }
    // SAFETY: not null, and valid by the contract of this function.
    unsafe { out.write(value) };
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn curandCreateGenerator(out: *mut usize, kind: u32) -> Status {
    call("curandCreateGenerator", || {
        if !PSEUDO.iter().any(|kinds| kinds.contains(&kind)) {
            let reason = format!("there is no generator of kind {kind} here");
            return Status::TypeError.because(reason);
        }
        if out.is_null() {
            return Status::OutOfRange.because("the result is null");
        }
        let queue = Queue::new().or_else(|reason| Status::InitializationFailed.because(reason))?;
        let generator = GENERATORS.insert(Generator { queue, stream: 0, seed: 0, offset: 0 });
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, generator) }
    })
}

/// Waits for what the generator has queued.
#[unsafe(no_mangle)]
extern "C" fn curandDestroyGenerator(generator: usize) -> Status {
    on_generator("curandDestroyGenerator", generator, |this| {
        this.queue.close();
        let removed = GENERATORS.remove(generator);
        removed.or_else(|reason| Status::NotInitialized.because(reason)).map(drop)
    })
}

#[unsafe(no_mangle)]
extern "C" fn curandSetStream(generator: usize, stream: usize) -> Status {
    on_generator("curandSetStream", generator, |generator| {
        generator.queue.check(stream).or_else(|reason| Status::LaunchFailure.because(reason))?;
        generator.stream = stream;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn curandSetPseudoRandomGeneratorSeed(generator: usize, seed: u64) -> Status {
    on_generator("curandSetPseudoRandomGeneratorSeed", generator, |generator| {
        (generator.seed, generator.offset) = (seed, 0);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn curandSetGeneratorOffset(generator: usize, offset: u64) -> Status {
    on_generator("curandSetGeneratorOffset", generator, |generator| {
        generator.offset = offset;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn curandGetVersion(out: *mut c_int) -> Status {
    // SAFETY: the caller's pointer, as the documentation demands.
    call("curandGetVersion", || unsafe { put(out, LOG.version() as c_int) })
}

#[unsafe(no_mangle)]
extern "C" fn curandGenerate(generator: usize, out: u64, count: usize) -> Status {
    on_generator("curandGenerate", generator, |this| this.fill_integers(out, 4, count))
}

#[unsafe(no_mangle)]
extern "C" fn curandGenerateUniform(generator: usize, out: u64, count: usize) -> Status {
    on_generator("curandGenerateUniform", generator, |generator| {
        generator.fill(out, Number::F32, count, Distribution::Uniform)
    })
}

#[unsafe(no_mangle)]
extern "C" fn curandGenerateUniformDouble(generator: usize, out: u64, count: usize) -> Status {
    on_generator("curandGenerateUniformDouble", generator, |generator| {
        generator.fill(out, Number::F64, count, Distribution::Uniform)
    })
}

macro_rules! by_mean_and_deviation {
    ($name:ident, $type:ty, $number:expr, $distribution:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn $name(
            generator: usize,
            out: u64,
            count: usize,
            mean: $type,
            deviation: $type,
        ) -> Status {
            on_generator(stringify!($name), generator, |generator| {
                let distribution = $distribution(f64::from(mean), f64::from(deviation));
                generator.fill(out, $number, count, distribution)
            })
        }
    };
}

by_mean_and_deviation!(curandGenerateNormal, f32, Number::F32, Distribution::Normal);
by_mean_and_deviation!(curandGenerateNormalDouble, f64, Number::F64, Distribution::Normal);
by_mean_and_deviation!(curandGenerateLogNormal, f32, Number::F32, Distribution::LogNormal);
by_mean_and_deviation!(curandGenerateLogNormalDouble, f64, Number::F64, Distribution::LogNormal);

/// Refused, as the generators that this stand-in has make no such numbers: those are of quasi-random ones.
#[unsafe(no_mangle)]
extern "C" fn curandGenerateLongLong(generator: usize, _out: u64, _count: usize) -> Status {
    on_generator("curandGenerateLongLong", generator, |_| {
        Status::TypeError.because("64-bit integers come from quasi-random generators only")
    })
}

#[unsafe(no_mangle)]
extern "C" fn curandGeneratePoisson(
    generator: usize,
    _out: u64,
    _count: usize,
    _lambda: f64,
) -> Status {
    on_generator("curandGeneratePoisson", generator, |_| {
        Status::TypeError.because("this stand-in has no Poisson distribution")
    })
}
