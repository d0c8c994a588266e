//! Safetensors files: those that torch wrote, and made by hand.
use super::files::checkout;
use super::layer::snapshot;
use batchnorm::{BatchNorm, Config, Real, Reference, StateDict, Strict};

/// A file of `tests/state/`.
pub fn file(name: &str) -> Vec<u8> {
    std::fs::read(checkout(&format!("tests/state/{name}.safetensors"))).unwrap()
}
pub fn dict(name: &str) -> StateDict {
    StateDict::from_bytes(&file(name)).unwrap()
}

/// One tensor's line of a header.
pub fn info(name: &str, dtype: &str, shape: &str, [start, end]: [u64; 2]) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}
/// A file with this header and data.
pub fn bytes_of(header: &[String], data: &[u8]) -> Vec<u8> {
    let header = format!("{{{}}}", header.join(","));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}
pub fn handmade(header: &[String], data: &[u8]) -> StateDict {
    StateDict::from_bytes(&bytes_of(header, data)).unwrap()
}

/// Reads the bytes and, if that succeeds, loads them every way.
pub fn load_anything(bytes: &[u8]) {
    let Ok(dict) = StateDict::from_bytes(bytes) else { return };
    assert_eq!(StateDict::from_bytes(&dict.to_bytes().unwrap()).unwrap(), dict);
    for prefix in ["", "layer1.0.bn1."] {
        load::<f32>(&dict, prefix, Config::default());
        load::<f64>(&dict, prefix, Config::default().weight(false));
    }
}

fn load<P: Real>(dict: &StateDict, prefix: &str, config: Config) {
    let mut bn = BatchNorm::<P, _>::new(&Reference, 5, config).unwrap();
    let before = snapshot(&bn);
    match bn.load_state_dict(dict, prefix, Strict::Yes) {
        Err(_) => assert_eq!(snapshot(&bn), before),
        Ok(_) => {
            // In bits, as NaN may be among them.
            let saved = bn.state_dict(prefix).unwrap();
            for name in saved.names().filter(|name| !name.ends_with("num_batches_tracked")) {
                let bits = |dict: &StateDict| -> Vec<u64> {
                    let values = dict.get::<P>(name).unwrap().unwrap().1;
                    values.iter().map(|v| v.to_f64().to_bits()).collect()
                };
                assert_eq!(bits(&saved), bits(dict), "{name}");
            }
        }
    }
    let report = bn.load_state_dict(dict, prefix, Strict::No).unwrap();
    assert_eq!(report.to_string().is_empty(), report.is_empty());
}
