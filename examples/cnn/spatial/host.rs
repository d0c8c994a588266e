use anyhow::Result;
use batchnorm::Host;

use super::{Images, Pixel, Spatial, TAPS};

/// On ordinary memory, on the calling thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostSpatial;

impl Spatial for HostSpatial {
    type Memory = Host;

    fn im2col(&self, of: Images, x: &[f32], columns: &mut [f32]) -> Result<()> {
        let windows = of.windows();
        of.check("im2col, x", x.len())?;
        windows.check("im2col, columns", columns.len())?;
        for (i, column) in columns.iter_mut().enumerate() {
            let window = windows.pixel(i);
            let (channel, tap) = (window.channel / TAPS, window.channel % TAPS);
            // Left of or above the image these wrap around to large numbers.
            let y = (window.y + tap / 3).wrapping_sub(1);
            let x_ = (window.x + tap % 3).wrapping_sub(1);
            let inside = y < of.height && x_ < of.width;
            let at = || of.index(Pixel { channel, y, x: x_, ..window });
            *column = if inside { x[at()] } else { 0.0 };
        }
        Ok(())
    }

    fn col2im(
        &self,
        of: Images,
        grad_columns: &[f32],
        accumulate: bool,
        grad_x: &mut [f32],
    ) -> Result<()> {
        let windows = of.windows();
        windows.check("col2im, grad_columns", grad_columns.len())?;
        of.check("col2im, grad_x", grad_x.len())?;
        for (i, grad) in grad_x.iter_mut().enumerate() {
            let pixel = of.pixel(i);
            let mut sum = if accumulate { *grad } else { 0.0 };
            for tap in 0..TAPS {
                let (y, x) = (pixel.y + 1, pixel.x + 1);
                let (y, x) = (y.wrapping_sub(tap / 3), x.wrapping_sub(tap % 3));
                if y < of.height && x < of.width {
                    let channel = pixel.channel * TAPS + tap;
                    sum += grad_columns[windows.index(Pixel { channel, y, x, ..pixel })];
                }
            }
            *grad = sum;
        }
        Ok(())
    }

    fn mean_pool(&self, of: Images, size: usize, x: &[f32], y: &mut [f32]) -> Result<()> {
        of.check_pool(size)?;
        let pooled = of.pooled(size);
        of.check("mean_pool, x", x.len())?;
        pooled.check("mean_pool, y", y.len())?;
        for (i, mean) in y.iter_mut().enumerate() {
            let to = pooled.pixel(i);
            let places = (0..size * size).map(|k| Pixel {
                y: to.y * size + k / size,
                x: to.x * size + k % size,
                ..to
            });
            let sum: f32 = places.map(|from| x[of.index(from)]).sum();
            *mean = sum / (size * size) as f32;
        }
        Ok(())
    }

    fn mean_pool_backward(
        &self,
        of: Images,
        size: usize,
        grad_y: &[f32],
        grad_x: &mut [f32],
    ) -> Result<()> {
        of.check_pool(size)?;
        let pooled = of.pooled(size);
        pooled.check("mean_pool_backward, grad_y", grad_y.len())?;
        of.check("mean_pool_backward, grad_x", grad_x.len())?;
        for (i, grad) in grad_x.iter_mut().enumerate() {
            let from = of.pixel(i);
            let to = Pixel { y: from.y / size, x: from.x / size, ..from };
            *grad = grad_y[pooled.index(to)] / (size * size) as f32;
        }
        Ok(())
    }
}
