//! The chart: time as a multiple of the floor, geometric mean per operation, one panel per layout.
use crate::font::{self, FONT};
use crate::picture;
use crate::rows::{Means, Row, means, peers};
use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const WIDTH: u32 = 1400;
const HEADER: i32 = 86;
const PANEL: u32 = 340;
/// Of the operations in a panel, as users meet them; others follow.
const ORDER: [&str; 7] = [
    "fwd_train",
    "fwd_train_relu",
    "fwd_train_add_relu",
    "bwd",
    "bwd_relu",
    "bwd_add_relu",
    "infer",
];
/// Okabe and Ito's colours, which people with any colour vision tell apart; ours first.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(204, 121, 167),
    RGBColor(240, 228, 66),
];

/// One layout: operations with their means.
type Panel<'a> = (String, Vec<(&'a str, Means<'a>)>);

/// A chart for every dtype and number of threads; the names of the PNG files.
pub fn all(rows: &[Row], ours: &str, out: &Path) -> Result<Vec<String>> {
    font::register()?;
    let mut names = Vec::new();
    let groups: BTreeSet<_> = rows.iter().map(|r| (&r.key.dtype, r.key.threads)).collect();
    for (dtype, threads) in groups {
        let rows = rows.iter().filter(|r| (&r.key.dtype, r.key.threads) == (dtype, threads));
        let panels = panels(rows.clone());
        if panels.is_empty() {
            continue; // no floors, no multiples
        }
        let shown: BTreeSet<&str> = panels
            .iter()
            .flat_map(|(_, ops)| ops.iter().flat_map(|(_, means)| means.of.keys().copied()))
            .collect();
        let mut peers = peers(rows, ours);
        peers.retain(|peer| shown.contains(peer));
        let on = if threads == 0 { "on the device".into() } else { format!("{threads} threads") };
        let chart = Chart { title: format!("Batch normalization, {dtype}, {on}"), peers, panels };
        let name = format!("speed-{dtype}-t{threads}");
        let size = (WIDTH, HEADER as u32 + PANEL * chart.panels.len() as u32);
        let (svg, png) = (out.join(format!("{name}.svg")), out.join(format!("{name}.png")));
        chart.draw(SVGBackend::new(&svg, size)).with_context(|| svg.display().to_string())?;
        let mut pixels = vec![0; 3 * size.0 as usize * size.1 as usize];
        chart.draw(BitMapBackend::with_buffer(&mut pixels, size))?;
        let written = std::fs::write(&png, picture::encode(&pixels, size)?);
        written.with_context(|| png.display().to_string())?;
        names.push(format!("{name}.png"));
    }
    Ok(names)
}

fn panels<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<Panel<'a>> {
    let place = |op: &str| ORDER.iter().position(|o| *o == op).unwrap_or(ORDER.len());
    let mut layouts: BTreeMap<&str, BTreeMap<(usize, &str), Vec<&Row>>> = BTreeMap::new();
    for row in rows {
        let op = row.key.op.as_str();
        let ops = layouts.entry(&row.key.layout).or_default();
        ops.entry((place(op), op)).or_default().push(row);
    }
    let mut panels = Vec::new();
    for layout in ["nchw", "nhwc", "nc"].into_iter().chain(layouts.keys().copied()) {
        let Some(ops) = layouts.get(layout) else { continue };
        let ops = ops.iter().map(|((_, op), rows)| (*op, means(rows)));
        let ops: Vec<_> = ops.filter(|(_, means)| means.rows > 0).collect();
        let new = panels.iter().all(|(name, _)| *name != layout.to_uppercase());
        if new && !ops.is_empty() {
            panels.push((layout.to_uppercase(), ops));
        }
    }
    panels
}

struct Chart<'a> {
    title: String,
    peers: Vec<&'a str>,
    panels: Vec<Panel<'a>>,
}

impl Chart<'_> {
    fn draw<B: DrawingBackend>(&self, backend: B) -> Result<()> {
        let root = backend.into_drawing_area();
        let error = |error: DrawingAreaErrorKind<B::ErrorType>| anyhow!("{error}");
        root.fill(&WHITE).map_err(error)?;
        let (header, body) = root.split_vertically(HEADER);
        self.header(&header).map_err(error)?;
        let areas = body.split_evenly((self.panels.len(), 1));
        for (area, (layout, ops)) in areas.iter().zip(&self.panels) {
            self.panel(area, layout, ops).map_err(error)?;
        }
        root.present().map_err(error)
    }

    fn header<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<B> {
        let what = "time as a multiple of the floor (red), geometric mean; lower is better";
        text(area, &format!("{}: {what}", self.title), (20, 14), 24.0, HPos::Left)?;
        let style = (FONT, 18.0).into_font();
        let mut x = 20;
        for (k, peer) in self.peers.iter().enumerate() {
            area.draw(&Rectangle::new([(x, 54), (x + 16, 70)], colour(k).filled()))?;
            text(area, peer, (x + 22, 53), 18.0, HPos::Left)?;
            x += 22 + style.box_size(peer).map_or(120, |(width, _)| width as i32) + 26;
        }
        Ok(())
    }

    fn panel<B: DrawingBackend>(
        &self,
        area: &Area<B>,
        layout: &str,
        ops: &[(&str, Means<'_>)],
    ) -> Drawn<B> {
        let values = || ops.iter().flat_map(|(_, means)| means.of.values().copied());
        let low = values().fold(1.0, f64::min) * 0.8;
        let high = values().fold(2.0, f64::max) * 1.5;
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(20)
            .x_label_area_size(48)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..ops.len() as f64, (low..high).log_scale())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_desc(layout)
            .axis_desc_style((FONT, 20))
            .y_label_style((FONT, 16))
            .y_label_formatter(&|v| format!("{v}"))
            .light_line_style(TRANSPARENT)
            .draw()?;
        // Places on the whole picture, as places in this area.
        let (dx, dy) = area.get_base_pixel();
        let place = |(x, y): (i32, i32), down: i32| (x - dx, y - dy + down);
        let slot = 0.86 / self.peers.len() as f64;
        for (i, (op, means)) in ops.iter().enumerate() {
            for (k, peer) in self.peers.iter().enumerate() {
                let Some(&value) = means.of.get(peer) else { continue };
                let left = i as f64 + 0.07 + k as f64 * slot;
                let bar = [(left, low), (left + slot * 0.9, value)];
                chart.draw_series([Rectangle::new(bar, colour(k).filled())])?;
                if self.peers.len() <= COLOURS.len() {
                    let top = chart.backend_coord(&(left + slot * 0.45, value));
                    let digits = usize::from(value < 10.0);
                    let label = format!("{value:.digits$}");
                    text(area, &label, place(top, -17), 15.0, HPos::Center)?;
                }
            }
            let below = chart.backend_coord(&(i as f64 + 0.5, low));
            let rows =
                if means.rows == 1 { "1 row".into() } else { format!("{} rows", means.rows) };
            text(area, op, place(below, 6), 17.0, HPos::Center)?;
            text(area, &rows, place(below, 26), 14.0, HPos::Center)?;
        }
        let floor = [(0.0, 1.0), (ops.len() as f64, 1.0)];
        chart.draw_series([PathElement::new(floor, RED.stroke_width(2))])?;
        Ok(())
    }
}

type Area<B> = DrawingArea<B, Shift>;
type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

fn text<B: DrawingBackend>(
    area: &Area<B>,
    text: &str,
    at: (i32, i32),
    size: f64,
    across: HPos,
) -> Drawn<B> {
    let style = (FONT, size).into_font().color(&BLACK).pos(Pos::new(across, VPos::Top));
    area.draw(&Text::new(text.to_string(), at, style))
}

fn colour(k: usize) -> RGBColor {
    COLOURS[k % COLOURS.len()]
}
