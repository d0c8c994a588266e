//! Zip archives: what `.pt`, `.npz` and `.keras` files are.
use std::io::{Cursor, Read, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use crate::{Error, Result};

/// An archive to read from. Its entries are looked at one by one.
pub(crate) struct Archive<'a> {
    format: &'static str,
    zip: ZipArchive<Cursor<&'a [u8]>>,
}

/// The most that deflate makes of a byte: an entry that claims more is damaged.
const MOST_PER_BYTE: u64 = 1032;

impl<'a> Archive<'a> {
    pub fn new(format: &'static str, bytes: &'a [u8]) -> Result<Self> {
        let zip = ZipArchive::new(Cursor::new(bytes)).map_err(|e| Error::malformed(format, e))?;
        Ok(Self { format, zip })
    }

    /// The entries' names, in the archive's order.
    pub fn names(&self) -> Vec<String> {
        let name = |index| Some(self.zip.name_for_index(index)?.ok()?.into_owned());
        (0..self.zip.len()).filter_map(name).collect()
    }

    /// The bytes of an entry; none where there is no such name.
    pub fn read(&mut self, name: &str) -> Result<Option<Vec<u8>>> {
        let format = self.format;
        let failed =
            |e: &dyn ToString| Error::malformed(format, format!("{name}: {}", e.to_string()));
        let Some(index) = self.zip.index_for_name(name) else { return Ok(None) };
        let mut entry = self.zip.by_index(index).map_err(|e| failed(&e))?;
        let size = entry.size();
        if size > entry.compressed_size().saturating_mul(MOST_PER_BYTE) {
            let packed = entry.compressed_size();
            return Err(failed(&format!("{packed} packed bytes cannot hold {size}")));
        }
        // As long as it comes out, not as long as it says: the buffer grows with what is there.
        let mut bytes = Vec::new();
        entry.by_ref().take(size).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
        if bytes.len() as u64 != size {
            return Err(failed(&format!("expected {size} bytes, got {}", bytes.len())));
        }
        Ok(Some(bytes))
    }

    /// The same archive with other bytes under one of its names; all other entries as they are.
    pub fn with(&mut self, name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
        let format = self.format;
        let failed = |e: zip::result::ZipError| Error::malformed(format, e);
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for index in 0..self.zip.len() {
            let entry = self.zip.by_index_raw(index).map_err(failed)?;
            if entry.name().map_err(failed)? == name {
                put(&mut writer, name, bytes, 1).map_err(failed)?;
            } else {
                writer.raw_copy_file(entry).map_err(failed)?;
            }
        }
        Ok(writer.finish().map_err(failed)?.into_inner())
    }
}

/// An archive of these entries, stored without compression. The bytes of each begin at a multiple of
/// `alignment`.
pub(crate) fn write<'a>(
    format: &'static str,
    entries: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    alignment: u16,
) -> Result<Vec<u8>> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let failed = |e: zip::result::ZipError| Error::unsupported(format, e);
    for (name, bytes) in entries {
        put(&mut writer, name, bytes, alignment).map_err(failed)?;
    }
    Ok(writer.finish().map_err(failed)?.into_inner())
}

fn put(
    writer: &mut ZipWriter<Cursor<Vec<u8>>>,
    name: &str,
    bytes: &[u8],
    alignment: u16,
) -> zip::result::ZipResult<()> {
    // No time of day: equal layers give equal files.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .large_file(u32::try_from(bytes.len()).is_err())
        .with_alignment(alignment);
    writer.start_file(name, options)?;
    Ok(writer.write_all(bytes)?)
}
