//! `exact_threads.cu`: shared and local memory, atomics, accesses of every width.
use super::super::data::Random;
use super::super::device::{Device, blocks};
use super::Check;
use super::launch::{launch, launch_onto};
use cudarc::driver::{DriverError, LaunchConfig};

const SOURCE: &str = "exact_threads";

fn transpose(device: &Device) -> Result<Check, DriverError> {
    let (rows, columns) = (75_usize, 101_usize);
    let values: Vec<u32> =
        (0..rows * columns).map(|i| (i as u32).wrapping_mul(2654435761)).collect();
    let config = LaunchConfig {
        grid_dim: (columns.div_ceil(32) as u32, rows.div_ceil(32) as u32, 1),
        block_dim: (32, 8, 1),
        shared_mem_bytes: 0,
    };
    let numbers = [rows as i32, columns as i32];
    let kernel = (SOURCE, "transpose");
    let out: Vec<u32> =
        launch(device, kernel, &[&values], &[values.len()], config, &numbers)?.remove(0);
    let expected: Vec<u32> =
        (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
    Ok(Check::new("transpose", &out, &expected))
}

fn atomics(device: &Device) -> Result<Vec<Check>, DriverError> {
    let mut random = Random::new(9);
    let values: Vec<u32> = (0..3001).map(|_| random.bits() as u32).collect();
    let n = values.len();
    let mut totals = [0_u32; 13];
    (totals[1], totals[3], totals[5], totals[12]) = (u32::MAX, i32::MAX as u32, u32::MAX, 1);
    totals[4] = i32::MIN as u32;
    let outs = vec![device.zeros(64)?, device.upload(&totals)?, device.unwritten(n)?];
    let (kernel, config) = ((SOURCE, "atomics"), blocks(7, 128));
    let mut outs = launch_onto::<u32, u32>(device, kernel, &[&values], outs, config, &[n as i32])?;
    outs[2].sort_unstable();

    let mut histogram = [0_u32; 64];
    let mut squares = 0_u64;
    for &v in &values {
        histogram[v as usize % 64] += 1;
        totals[0] = totals[0].wrapping_add(v);
        totals[1] = totals[1].min(v);
        totals[2] = totals[2].max(v);
        totals[3] = (totals[3] as i32).min(v as i32) as u32;
        totals[4] = (totals[4] as i32).max(v as i32) as u32;
        totals[5] &= v | 0xf0f0_f0f0;
        totals[6] |= v & 0x0f0f_f0f0;
        totals[7] ^= v;
        totals[12] = totals[12].wrapping_mul(v | 1);
        squares = squares.wrapping_add(u64::from(v) * u64::from(v));
    }
    (totals[8], totals[10], totals[11]) = (n as u32, squares as u32, (squares >> 32) as u32);
    let seen: Vec<u32> = (0..n as u32).collect();
    Ok(vec![
        Check::new("atomics/histogram", &outs[0], &histogram),
        Check::new("atomics/totals", &outs[1], &totals),
        Check::new("atomics/what was there before, sorted", &outs[2], &seen),
    ])
}

fn sort_local(device: &Device) -> Result<Check, DriverError> {
    let n = 150;
    let mut random = Random::new(10);
    let values: Vec<i32> = (0..16 * n).map(|_| random.bits() as i32).collect();
    let (kernel, config) = ((SOURCE, "sort_local"), blocks(2, 96));
    let out: Vec<i32> =
        launch(device, kernel, &[&values], &[values.len()], config, &[n as i32])?.remove(0);
    let mut expected = vec![0; values.len()];
    for i in 0..n {
        let mut column: Vec<i32> = values.iter().skip(i).step_by(n).copied().collect();
        column.sort_unstable();
        for (k, value) in column.into_iter().enumerate() {
            expected[k * n + i] = value;
        }
    }
    Ok(Check::new("sort_local", &out, &expected))
}

fn widths(device: &Device) -> Result<Check, DriverError> {
    // A multiple of 16, so that every part of the output is aligned.
    let n = 112;
    let mut random = Random::new(11);
    let bytes: Vec<u8> = (0..16 * n).map(|_| random.bits() as u8).collect();
    let (kernel, config) = ((SOURCE, "widths"), blocks(2, 64));
    let out: Vec<u8> = launch(device, kernel, &[&bytes], &[59 * n], config, &[n as i32])?.remove(0);
    let mut expected = Vec::new();
    for size in [1, 2, 4, 8] {
        for element in bytes[..n * size].chunks_exact(size) {
            let mut wide = [0; 8];
            wide[..size].copy_from_slice(element);
            let next = u64::from_le_bytes(wide).wrapping_add(1).to_le_bytes();
            expected.extend_from_slice(&next[..size]);
        }
    }
    // Vectors, with their elements in reverse.
    for (size, count) in [(1, 4), (2, 4), (4, 4), (8, 2)] {
        for vector in bytes[..n * size * count].chunks_exact(size * count) {
            expected.extend(vector.chunks_exact(size).rev().flatten());
        }
    }
    Ok(Check::new("widths", &out, &expected))
}

pub fn run(device: &Device) -> Result<Vec<Check>, DriverError> {
    let mut checks = atomics(device)?;
    checks.extend([transpose(device)?, sort_local(device)?, widths(device)?]);
    Ok(checks)
}
