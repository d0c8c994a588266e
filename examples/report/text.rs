//! The report as markdown.
use crate::read::Record;
use crate::rows::{Cell, Row, peers};
use std::collections::BTreeSet;
use std::fmt::Write;

/// `charts` are names of files beside the report.
pub fn markdown(record: &Record, rows: &[Row], ours: &str, charts: &[String]) -> String {
    let mut text = String::from("# Speed\n\n");
    let versions: BTreeSet<(&str, &str)> =
        record.runs.iter().flat_map(|run| &run.versions).map(|(k, v)| (&k[..], &v[..])).collect();
    for (peer, version) in &versions {
        _ = writeln!(text, "- {peer}: {version}");
    }
    if !versions.is_empty() {
        text.push('\n');
    }
    text.push_str("Times in milliseconds, medians; in parentheses as multiples of the floor, ");
    text.push_str("what the memory alone took in the same run. The quickest is bold; ");
    text.push_str("an exclamation mark says that other processes disturbed every turn.\n");
    for chart in charts {
        _ = write!(text, "\n![{chart}]({chart})\n");
    }

    let (mut lost, mut others, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        match row.ratio(ours) {
            Some(ratio) if ratio > 1.0 => lost.push((Some(ratio), row)),
            Some(ratio) => others.push((Some(ratio), row)),
            None => alone.push((None, row)),
        }
    }
    // The worst first.
    for group in [&mut lost, &mut others] {
        group.sort_by(|a, b| b.0.unwrap_or(0.0).total_cmp(&a.0.unwrap_or(0.0)));
    }
    let compared = lost.len() + others.len();
    let peers = peers(rows, ours);
    let titles = [
        (format!("{ours} is slower than the best peer in {} of {compared} rows", lost.len()), lost),
        (format!("{ours} is as quick or quicker"), others),
        ("Nothing to compare with".into(), alone),
    ];
    for (title, rows) in titles.iter().filter(|(_, rows)| !rows.is_empty()) {
        _ = write!(text, "\n## {title}\n\n");
        table(&mut text, rows, &peers, ours);
    }
    if !record.refused.is_empty() {
        text.push_str("\n## Not measured\n\n");
    }
    for ((peer, reason), cases) in &record.refused {
        let cases = if *cases == 1 { "1 case".into() } else { format!("{cases} cases") };
        _ = writeln!(text, "- {peer}, {cases}: {reason}");
    }
    text
}

fn table(text: &mut String, rows: &[(Option<f64>, &Row)], peers: &[&str], ours: &str) {
    _ = write!(text, "| shape | layout | dtype | threads | op | {ours} / best peer |");
    peers.iter().for_each(|peer| _ = write!(text, " {peer} |"));
    text.push_str("\n|---|---|---|---|---|---|");
    peers.iter().for_each(|_| text.push_str("---|"));
    text.push('\n');
    for (ratio, row) in rows {
        let key = &row.key;
        let shape = key.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        _ = write!(text, "| {shape} | {} | {} | {} | ", key.layout, key.dtype, key.threads);
        let best = row.best_peer(ours);
        let ratio = match (ratio, best) {
            (Some(ratio), Some((peer, _))) => format!("{ratio:.2} {peer}"),
            _ => "-".into(),
        };
        _ = write!(text, "{} | {ratio} |", key.op);
        let quickest = row.quickest();
        for peer in peers {
            let cell = row.cells.get(*peer).map_or("-".into(), |cell| {
                let text = time(cell);
                if quickest == Some(*peer) { format!("**{text}**") } else { text }
            });
            _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
}

/// Three digits at least.
fn time(cell: &Cell) -> String {
    let ms = cell.seconds * 1e3;
    let time = if ms < 1.0 { format!("{ms:.4}") } else { format!("{ms:.2}") };
    let time = if cell.disturbed { time + "!" } else { time };
    cell.multiple.map_or(time.clone(), |multiple| format!("{time} ({multiple:.1})"))
}
