//! Panels of lines side by side, as PNG and SVG.
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::font::{self, FONT};
use super::picture;

/// One chart.
pub struct Panel {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    /// Whether lines fall: there is room for their names at the left.
    pub falls: bool,
}

/// What an axis is of, and from where to where it goes.
pub struct Axis {
    pub name: &'static str,
    range: [f64; 2],
}

impl Axis {
    pub fn new(name: &'static str, from: f64, to: f64) -> Self {
        Self { name, range: [from, to] }
    }
}

/// A line; its points in order.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

const SIZE: (u32, u32) = (720, 480);
/// Okabe and Ito's, which people with any colour vision tell apart.
const COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

fn size(panels: &[Panel]) -> (u32, u32) {
    (SIZE.0 * panels.len() as u32, SIZE.1)
}

/// The panels as an SVG file.
pub fn svg(panels: &[Panel]) -> Result<String> {
    let mut svg = String::new();
    draw(SVGBackend::with_string(&mut svg, size(panels)).into_drawing_area(), panels)?;
    Ok(svg)
}

/// The panels as a PNG file.
pub fn png(panels: &[Panel]) -> Result<Vec<u8>> {
    let size = size(panels);
    let mut pixels = vec![0; 3 * size.0 as usize * size.1 as usize];
    draw(BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area(), panels)?;
    Ok(picture::encode(&pixels, size)?)
}

fn draw<D: DrawingBackend>(area: DrawingArea<D, Shift>, panels: &[Panel]) -> Result<()> {
    font::register()?;
    // The backends' errors do not live as long as an anyhow::Error must.
    let error = |error: DrawingAreaErrorKind<D::ErrorType>| anyhow!("the plot: {error}");
    area.fill(&WHITE).map_err(error)?;
    for (area, panel) in area.split_evenly((1, panels.len())).iter().zip(panels) {
        draw_panel(area, panel).map_err(error)?;
    }
    area.present().map_err(error)
}

fn draw_panel<D: DrawingBackend>(
    area: &DrawingArea<D, Shift>,
    panel: &Panel,
) -> Result<(), DrawingAreaErrorKind<D::ErrorType>> {
    let [x, y] = [&panel.x, &panel.y].map(|axis| axis.range[0]..axis.range[1]);
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 21))
        .margin(14)
        .margin_right(28)
        .x_label_area_size(50)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .label_style((FONT, 16))
        .axis_desc_style((FONT, 18))
        .x_desc(panel.x.name)
        .y_desc(panel.y.name)
        .x_label_formatter(&|x| format!("{}", (x * 1e3).round() / 1e3))
        .y_label_formatter(&|y| format!("{}", (y * 1e3).round() / 1e3))
        .draw()?;
    for (series, colour) in panel.series.iter().zip(COLOURS.iter().cycle()) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(series.points.iter().copied(), style))?
            .label(&series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 28, y)], style));
        // A few points are marked, many are a curve.
        let few = if series.points.len() <= 12 { &series.points[..] } else { &[] };
        chart.draw_series(few.iter().map(|&point| Circle::new(point, 4, colour.filled())))?;
    }
    let position = match panel.falls {
        true => SeriesLabelPosition::LowerLeft,
        false => SeriesLabelPosition::LowerRight,
    };
    chart
        .configure_series_labels()
        .position(position)
        .margin(14)
        .legend_area_size(36)
        .label_font((FONT, 16))
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()
}
