//! What all peers took for the same work, and their multiples of the floor.
use crate::read::{Key, Record};
use std::collections::BTreeMap;

/// One case of the table and all who ran it.
pub struct Row {
    pub key: Key,
    /// By the peer's name.
    pub cells: BTreeMap<String, Cell>,
}

/// One peer's time.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    run: usize,
    pub seconds: f64,
    /// Of the floor in the same run, if that was measured.
    pub multiple: Option<f64>,
    /// Other processes took the processor in every turn, of the peer or of the floor.
    pub disturbed: bool,
}

/// One row per case, sorted.
pub fn rows(record: &Record) -> Vec<Row> {
    let mut cells: BTreeMap<&Key, BTreeMap<&str, Vec<Cell>>> = BTreeMap::new();
    for (run, lines) in record.runs.iter().map(|run| &run.lines).enumerate() {
        for line in lines.iter().filter(|line| !is_floor(&line.peer)) {
            let name = floor(&line.key.op);
            let floor = lines.iter().rfind(|floor| floor.peer == name && floor.key == line.key);
            let multiple = floor.map(|floor| line.median_s / floor.median_s);
            let disturbed = [Some(line), floor].iter().flatten().any(|l| l.clean_turns == Some(0));
            let cell = Cell { run, seconds: line.median_s, multiple, disturbed };
            cells.entry(&line.key).or_default().entry(&line.peer).or_default().push(cell);
        }
    }
    let row = |(key, peers): (&Key, BTreeMap<&str, Vec<Cell>>)| Row {
        key: key.clone(),
        cells: peers.into_iter().map(|(peer, cells)| (peer.to_string(), middle(cells))).collect(),
    };
    cells.into_iter().map(row).collect()
}

fn is_floor(peer: &str) -> bool {
    peer.starts_with("floor")
}

/// The floor that moves as many tensors as the operation must.
fn floor(op: &str) -> &'static str {
    match (op.starts_with("bwd"), op.contains("add")) {
        (false, false) => "floor:copy_1R1W",
        (true, false) | (false, true) => "floor:add_2R1W",
        (true, true) => "floor:add_2R2W",
    }
}

/// Of several runs of one peer the middle one, by multiples of the floor where all have them.
fn middle(mut cells: Vec<Cell>) -> Cell {
    let multiples = cells.iter().all(|cell| cell.multiple.is_some());
    let measure = |c: &Cell| if multiples { c.multiple.unwrap_or(c.seconds) } else { c.seconds };
    cells.sort_by(|a, b| measure(a).total_cmp(&measure(b)));
    cells[(cells.len() - 1) / 2]
}

impl Cell {
    /// How often `other` fits into this time; none where the two have nothing in common.
    fn ratio(&self, other: &Cell) -> Option<f64> {
        match (self.multiple, other.multiple) {
            (Some(this), Some(other)) => Some(this / other),
            _ => (self.run == other.run).then_some(self.seconds / other.seconds),
        }
    }
}

impl Row {
    /// The quicker one of those whose names begin with `ours`.
    pub fn ours(&self, ours: &str) -> Option<(&str, &Cell)> {
        best(self.cells.iter().filter(|(name, _)| name.starts_with(ours)))
    }
    /// The quickest of the others.
    pub fn best_peer(&self, ours: &str) -> Option<(&str, &Cell)> {
        best(self.cells.iter().filter(|(name, _)| !name.starts_with(ours)))
    }
    /// The quickest of all, if every other can be compared with it.
    pub fn quickest(&self) -> Option<&str> {
        let (name, cell) = best(self.cells.iter())?;
        self.cells.values().all(|other| cell.ratio(other).is_some()).then_some(name)
    }
    /// Our time over the best peer's: above 1 we lose.
    pub fn ratio(&self, ours: &str) -> Option<f64> {
        self.ours(ours)?.1.ratio(self.best_peer(ours)?.1)
    }
}

fn best<'a>(cells: impl Iterator<Item = (&'a String, &'a Cell)>) -> Option<(&'a str, &'a Cell)> {
    let measure = |cell: &Cell| (cell.multiple.is_none(), cell.multiple.unwrap_or(cell.seconds));
    let less = |a: &Cell, b: &Cell| {
        let (a, b) = (measure(a), measure(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    };
    cells.min_by(|(_, a), (_, b)| less(a, b)).map(|(name, cell)| (name.as_str(), cell))
}

/// Every peer that has a cell: ours first, then by name.
pub fn peers<'a>(rows: impl IntoIterator<Item = &'a Row>, ours: &str) -> Vec<&'a str> {
    let mut peers: Vec<&str> =
        rows.into_iter().flat_map(|row| row.cells.keys().map(String::as_str)).collect();
    peers.sort_by_key(|peer| (!peer.starts_with(ours), *peer));
    peers.dedup();
    peers
}

/// Geometric means of multiples of the floor, and over how many rows.
pub struct Means<'a> {
    pub rows: usize,
    pub of: BTreeMap<&'a str, f64>,
}

/// Means over the same rows for every peer: those that all of them have. A peer with less than
/// half of the rows is left out, it would leave too few.
pub fn means<'a>(rows: &[&'a Row]) -> Means<'a> {
    let multiple = |row: &Row, peer: &str| row.cells.get(peer).and_then(|cell| cell.multiple);
    let mut peers = peers(rows.iter().copied(), "");
    peers.retain(|peer| {
        2 * rows.iter().filter(|row| multiple(row, peer).is_some()).count() >= rows.len()
    });
    let all_have = |row: &Row| peers.iter().all(|peer| multiple(row, peer).is_some());
    let common = rows.iter().filter(|row| !peers.is_empty() && all_have(row));
    let common: Vec<&&Row> = common.collect();
    let mean = |peer: &str| {
        let logs: f64 = common.iter().filter_map(|row| multiple(row, peer)).map(f64::ln).sum();
        (logs / common.len() as f64).exp()
    };
    let of = if common.is_empty() { Vec::new() } else { peers };
    Means { rows: common.len(), of: of.into_iter().map(|peer| (peer, mean(peer))).collect() }
}
