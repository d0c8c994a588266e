//! Memory pools. All of a device share its memory, and a pool only counts what it has given away.

use std::ffi::{c_int, c_uint, c_void};

use super::{call, put, required};
use crate::{
    code::Code,
    driver::{Id, Locked},
    memory::Pool,
};

/// What is settable: three switches for the reuse of memory (`int`), and how much to keep (`cuuint64_t`).
const SWITCHES: std::ops::RangeInclusive<c_uint> = 1..=3;
const RELEASE_THRESHOLD: c_uint = 4;
const RESERVED_CURRENT: c_uint = 5;
const RESERVED_HIGH: c_uint = 6;
const USED_CURRENT: c_uint = 7;
const USED_HIGH: c_uint = 8;

/// The beginning of a `CUmemPoolProps`; what follows (security, size, usage) has no effect here.
#[repr(C)]
struct Properties {
    kind: c_uint,
    handles: c_uint,
    location_kind: c_uint,
    location: c_int,
}

/// The device of that number, if it has pools.
fn with_pools(driver: &mut Locked, device: c_int) -> Result<usize, Code> {
    let device = driver.device(device)?;
    if device.profile.pools { Ok(device.ordinal) } else { Err(Code::NotSupported) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetDefaultMemPool(out: *mut Id, device: c_int) -> Code {
    call(|driver| {
        let device = with_pools(driver, device)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, driver.devices[device].default_pool) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetMemPool(out: *mut Id, device: c_int) -> Code {
    call(|driver| {
        let device = with_pools(driver, device)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, driver.devices[device].current_pool) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceSetMemPool(device: c_int, pool: Id) -> Code {
    call(|driver| {
        let device = with_pools(driver, device)?;
        let owner = driver.pools.get(&pool).ok_or(Code::InvalidHandle)?.device;
        if owner != device {
            return Err(Code::InvalidValue);
        }
        driver.devices[device].current_pool = pool;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolCreate(out: *mut Id, properties: *const Properties) -> Code {
    const PINNED: c_uint = 1;
    const DEVICE: c_uint = 1;
    call(|driver| {
        required(out)?;
        required(properties)?;
        // SAFETY: not null, and the caller's pointer, as the driver's API demands.
        let properties = unsafe { properties.read() };
        if properties.kind != PINNED || properties.location_kind != DEVICE {
            return Err(Code::InvalidValue);
        }
        if properties.handles != 0 {
            return Err(Code::NotSupported);
        }
        let device = with_pools(driver, properties.location)?;
        let id = driver.fresh();
        driver.pools.insert(id, Pool::new(device));
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, id) }
    })
}

/// Memory that the pool has given away stays valid.
#[unsafe(no_mangle)]
extern "C" fn cuMemPoolDestroy(pool: Id) -> Code {
    call(|driver| {
        let device = driver.pools.get(&pool).ok_or(Code::InvalidHandle)?.device;
        let device = &mut driver.devices[device];
        if device.default_pool == pool {
            return Err(Code::InvalidValue);
        }
        if device.current_pool == pool {
            device.current_pool = device.default_pool;
        }
        driver.pools.remove(&pool);
        Ok(())
    })
}

/// Nothing is kept, so there is nothing to trim.
#[unsafe(no_mangle)]
extern "C" fn cuMemPoolTrimTo(pool: Id, _keep: usize) -> Code {
    call(|driver| driver.pools.get(&pool).map(|_| ()).ok_or(Code::InvalidHandle))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolSetAttribute(
    pool: Id,
    attribute: c_uint,
    value: *const c_void,
) -> Code {
    call(|driver| {
        required(value)?;
        let this = driver.pools.get_mut(&pool).ok_or(Code::InvalidHandle)?;
        let value = match attribute {
            // SAFETY: the caller's pointer, to an `int` for these attributes.
            1..=3 => unsafe { value.cast::<c_int>().read_unaligned() as u64 },
            // SAFETY: the caller's pointer, to a `cuuint64_t` for these attributes.
            RELEASE_THRESHOLD | RESERVED_HIGH | USED_HIGH => unsafe {
                value.cast::<u64>().read_unaligned()
            },
            _ => return Err(Code::InvalidValue),
        };
        match (attribute, value) {
            (RESERVED_HIGH | USED_HIGH, 0) => this.high_water = 0,
            (RESERVED_HIGH | USED_HIGH, _) => return Err(Code::InvalidValue),
            _ => {
                this.attributes.insert(attribute, value);
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolGetAttribute(pool: Id, attribute: c_uint, out: *mut c_void) -> Code {
    call(|driver| {
        required(out)?;
        let this = driver.pools.get(&pool).ok_or(Code::InvalidHandle)?;
        let used = driver.devices[this.device].used_of_pool(pool);
        let default = u64::from(SWITCHES.contains(&attribute));
        let value = match attribute {
            1..=RELEASE_THRESHOLD => this.attributes.get(&attribute).copied().unwrap_or(default),
            RESERVED_CURRENT | USED_CURRENT => used,
            RESERVED_HIGH | USED_HIGH => this.high_water.max(used),
            _ => return Err(Code::InvalidValue),
        };
        if SWITCHES.contains(&attribute) {
            // SAFETY: the caller's pointer, to an `int` for these attributes.
            unsafe { put(out.cast::<c_int>(), value as c_int) }
        } else {
            // SAFETY: the caller's pointer, to a `cuuint64_t` for these attributes.
            unsafe { put(out.cast::<u64>(), value) }
        }
    })
}
