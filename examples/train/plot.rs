//! Test accuracy over steps, as PNG and SVG, with a font that comes along: nothing is asked of
//! the system.
use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

use super::experiment::Point;
use super::network::Score;

#[path = "../support/png.rs"]
mod picture;

/// `../support/font/LICENSE` says whose.
const FONT: &[u8] = include_bytes!("../support/font/DejaVuSans-ASCII.ttf");
/// In an SVG it is whatever the reader's browser takes for it.
const FAMILY: &str = "sans-serif";

const SIZE: (u32, u32) = (960, 600);
/// Blue and vermilion of Okabe and Ito's palette, which most colour-blind readers tell apart; the
/// lines differ in width too.
const WITH: RGBColor = RGBColor(0, 114, 178);
const WITHOUT: RGBColor = RGBColor(213, 94, 0);

/// The plot as an SVG file.
pub fn svg(points: &[Point], title: &str) -> Result<String> {
    let mut svg = String::new();
    draw(SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), points, title)?;
    Ok(svg)
}

/// The plot as a PNG file.
pub fn png(points: &[Point], title: &str) -> Result<Vec<u8>> {
    let mut pixels = vec![0; 3 * SIZE.0 as usize * SIZE.1 as usize];
    draw(BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area(), points, title)?;
    Ok(picture::encode(&pixels, SIZE)?)
}

fn draw<D: DrawingBackend>(
    area: DrawingArea<D, Shift>,
    points: &[Point],
    title: &str,
) -> Result<()> {
    register_font(FAMILY, FontStyle::Normal, FONT).map_err(|_| anyhow!("the plot's font"))?;
    // The backends' errors do not live as long as an anyhow::Error must.
    draw_chart(&area, points, title).map_err(|error| anyhow!("the plot: {error}"))
}

fn draw_chart<D: DrawingBackend>(
    area: &DrawingArea<D, Shift>,
    points: &[Point],
    title: &str,
) -> Result<(), DrawingAreaErrorKind<D::ErrorType>> {
    area.fill(&WHITE)?;
    let steps: Range<f64> = 0.0..points.last().map_or(1.0, |p| p.step.max(1) as f64);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FAMILY, 22))
        .margin(16)
        .margin_right(32)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d(steps, 0.0..100.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .label_style((FAMILY, 16))
        .axis_desc_style((FAMILY, 18))
        .x_desc("training steps")
        .y_desc("test accuracy (%)")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|accuracy| format!("{accuracy:.0}"))
        .draw()?;
    let mut line = |name: &str, score: fn(&Point) -> Score, style: ShapeStyle| {
        let xy = |p: &Point| (p.step as f64, 100.0 * score(p).accuracy);
        chart
            .draw_series(LineSeries::new(points.iter().map(xy), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 28, y)], style));
        Ok::<_, DrawingAreaErrorKind<D::ErrorType>>(())
    };
    line("without batch normalization", |p| p.without, WITHOUT.stroke_width(2))?;
    line("with batch normalization", |p| p.with, WITH.stroke_width(3))?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .margin(16)
        .legend_area_size(36)
        .label_font((FAMILY, 17))
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()
}
