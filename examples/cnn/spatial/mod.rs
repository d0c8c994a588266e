//! Images, and what a convolutional network does with them besides normalizing and multiplying.
use anyhow::{Result, ensure};
use batchnorm::{Memory, Shape};

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod cuda;
mod host;

#[cfg(feature = "cuda")]
pub use cuda::CudaSpatial;
pub use host::HostSpatial;

/// How images lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// Channel by channel: every channel is an image of its own.
    Nchw,
    /// Pixel by pixel: the channels of a pixel lie side by side.
    Nhwc,
}

/// So many images of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Images {
    pub count: usize,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub layout: Layout,
}

/// A place in one of them.
#[derive(Debug, Clone, Copy)]
struct Pixel {
    image: usize,
    channel: usize,
    y: usize,
    x: usize,
}

/// Of a window of 3 x 3.
pub const TAPS: usize = 9;

impl Images {
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }
    pub fn len(&self) -> usize {
        self.count * self.channels * self.pixels()
    }
    /// As batch normalization takes them.
    pub fn shape(&self) -> batchnorm::Result<Shape> {
        let &Self { count, channels, height, width, layout } = self;
        match layout {
            Layout::Nchw => Shape::new(&[count, channels, height, width], 1),
            Layout::Nhwc => Shape::new(&[count, height, width, channels], 3),
        }
    }
    /// The same with other channels.
    pub fn of(self, channels: usize) -> Self {
        Self { channels, ..self }
    }
    /// What the windows around their pixels are: a channel for every tap of every channel.
    pub fn windows(self) -> Self {
        self.of(self.channels * TAPS)
    }
    /// A pixel for every square of `size` x `size`.
    pub fn pooled(self, size: usize) -> Self {
        Self { height: self.height / size, width: self.width / size, ..self }
    }

    /// Where element `i` is.
    fn pixel(&self, mut i: usize) -> Pixel {
        let mut next = |size| {
            let rest = i % size;
            i /= size;
            rest
        };
        // What lies closest together comes first.
        let (channel, y, x) = match self.layout {
            Layout::Nhwc => {
                let (channel, x) = (next(self.channels), next(self.width));
                (channel, next(self.height), x)
            }
            Layout::Nchw => {
                let (x, y) = (next(self.width), next(self.height));
                (next(self.channels), y, x)
            }
        };
        Pixel { image: i, channel, y, x }
    }
    fn index(&self, Pixel { image, channel, y, x }: Pixel) -> usize {
        let &Self { channels, height, width, .. } = self;
        match self.layout {
            Layout::Nhwc => ((image * height + y) * width + x) * channels + channel,
            Layout::Nchw => ((image * channels + channel) * height + y) * width + x,
        }
    }

    fn check(&self, what: &str, got: usize) -> Result<()> {
        let expected = self.len();
        ensure!(got == expected, "{what}: expected {expected} elements for {self:?}, got {got}");
        Ok(())
    }
    fn check_pool(&self, size: usize) -> Result<()> {
        let Self { height, width, .. } = self;
        let whole = size > 0 && height.is_multiple_of(size) && width.is_multiple_of(size);
        ensure!(whole, "mean_pool: expected squares that fill {height} x {width}, got size {size}");
        Ok(())
    }
}

/// Arithmetic on images in one kind of memory, in the layout of `of`. Nothing here allocates, and
/// nothing waits.
pub trait Spatial: Clone + Send + Sync + 'static {
    /// Where its arguments lie: that of the engine beside it.
    type Memory: Memory;

    /// Copies the 3 x 3 window around every pixel, with zeros outside of the image, so that a
    /// convolution is a matrix product: `columns` are the [`windows`](Images::windows).
    fn im2col(&self, of: Images, x: View<'_, Self>, columns: ViewMut<'_, Self>) -> Result<()>;
    /// The gradient of `x`, from that of the columns; added to what is there if `accumulate`.
    fn col2im(
        &self,
        of: Images,
        grad_columns: View<'_, Self>,
        accumulate: bool,
        grad_x: ViewMut<'_, Self>,
    ) -> Result<()>;
    /// Means of squares of `size` x `size`.
    fn mean_pool(
        &self,
        of: Images,
        size: usize,
        x: View<'_, Self>,
        y: ViewMut<'_, Self>,
    ) -> Result<()>;
    /// The gradient of that `x`.
    fn mean_pool_backward(
        &self,
        of: Images,
        size: usize,
        grad_y: View<'_, Self>,
        grad_x: ViewMut<'_, Self>,
    ) -> Result<()>;
}

type View<'a, S> = <<S as Spatial>::Memory as Memory>::View<'a, f32>;
type ViewMut<'a, S> = <<S as Spatial>::Memory as Memory>::ViewMut<'a, f32>;
