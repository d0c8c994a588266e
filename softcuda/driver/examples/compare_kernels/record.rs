//! Results in a file: safetensors, a tensor per result.
use crate::support::element::Kind;
use crate::support::output::Output;
use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Results by name.
pub type Record = BTreeMap<String, (Kind, Vec<u64>)>;

const KINDS: [(Kind, Dtype); 8] = [
    (Kind::U8, Dtype::U8),
    (Kind::U16, Dtype::U16),
    (Kind::U32, Dtype::U32),
    (Kind::U64, Dtype::U64),
    (Kind::F16, Dtype::F16),
    (Kind::Bf16, Dtype::BF16),
    (Kind::F32, Dtype::F32),
    (Kind::F64, Dtype::F64),
];

/// Stands in the file for the kernels that were run: FNV-1a of all their PTX.
fn kernels() -> String {
    let bytes = softcuda_kernels::texts().flat_map(String::into_bytes);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

pub fn write(path: &Path, outputs: &[Output]) -> Result<()> {
    let bytes_of = |output: &Output| -> Vec<u8> {
        let size = output.kind.size();
        output.bits.iter().flat_map(|bits| bits.to_le_bytes().into_iter().take(size)).collect()
    };
    let data: Vec<Vec<u8>> = outputs.iter().map(bytes_of).collect();
    let mut views = Vec::new();
    for (output, data) in outputs.iter().zip(&data) {
        let dtype = KINDS.iter().find(|(kind, _)| *kind == output.kind).context("a kind")?.1;
        views.push((&output.name, TensorView::new(dtype, vec![output.bits.len()], data)?));
    }
    let metadata = HashMap::from([("kernels".to_owned(), kernels())]);
    Ok(std::fs::write(path, safetensors::serialize(views, Some(metadata))?)?)
}

pub fn read(path: &Path) -> Result<Record> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let of = header.metadata().as_ref().and_then(|metadata| metadata.get("kernels"));
    ensure!(of == Some(&kernels()), "recorded with other kernels than this program's");
    let mut record = Record::new();
    for (name, view) in file.iter() {
        let Some((kind, _)) = KINDS.iter().find(|(_, dtype)| *dtype == view.dtype()) else {
            bail!("{name}: {:?} is no kind of result", view.dtype());
        };
        let bits = view.data().chunks_exact(kind.size()).map(|bytes| {
            let mut wide = [0; 8];
            wide[..kind.size()].copy_from_slice(bytes);
            u64::from_le_bytes(wide)
        });
        record.insert(name.to_owned(), (*kind, bits.collect()));
    }
    Ok(record)
}
