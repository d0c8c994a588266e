//! Charts that look the same on every machine: drawn with a font that comes with them.
use anyhow::{Result, anyhow};
use plotters::style::{FontStyle, register_font};

/// The name to draw text with. A viewer of an SVG puts its own font of that kind.
pub const FONT: &str = "sans-serif";

/// To be called before the first chart is drawn.
pub fn register() -> Result<()> {
    let font = include_bytes!("font/DejaVuSans-ASCII.ttf"); // font/LICENSE says whose
    register_font(FONT, FontStyle::Normal, font).map_err(|_| anyhow!("the font cannot be read"))
}
