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
    let (dict, borrowed) = (StateDict::from_bytes(bytes), StateDict::borrow_bytes(bytes));
    let (dict, borrowed) = match (dict, borrowed) {
        (Ok(dict), Ok(borrowed)) => (dict, borrowed),
        // Of several tensors that are wrong, either may name any.
        (dict, borrowed) => return assert_eq!(dict.is_err(), borrowed.is_err()),
    };
    let again = dict.to_bytes().unwrap();
    assert_eq!(StateDict::from_bytes(&again).unwrap(), dict);
    assert_eq!(borrowed.to_bytes().unwrap(), again);
    for prefix in ["", "layer1.0.bn1."] {
        load::<f32, _>(&dict, prefix, Config::default());
        load::<f64, _>(&dict, prefix, Config::default().weight(false));
        load::<f32, _>(&borrowed, prefix, Config::default());
    }
}

fn load<P: Real, D: AsRef<[u8]>>(dict: &StateDict<D>, prefix: &str, config: Config) {
    let mut bn = BatchNorm::<P, _>::new(&Reference, 5, config).unwrap();
    let before = snapshot(&bn);
    match bn.load_state_dict(dict, prefix, Strict::Yes) {
        Err(_) => assert_eq!(snapshot(&bn), before),
        Ok(_) => {
            // In bits, as NaN may be among them.
            let saved = bn.state_dict(prefix).unwrap();
            for name in saved.names().filter(|name| !name.ends_with("num_batches_tracked")) {
                let bits = |values: Vec<P>| -> Vec<u64> {
                    values.iter().map(|v| v.to_f64().to_bits()).collect()
                };
                let (saved, given) = (saved.get(name), dict.get(name));
                let [saved, given] = [saved, given].map(|found| bits(found.unwrap().unwrap().1));
                assert_eq!(saved, given, "{name}");
            }
        }
    }
    let report = bn.load_state_dict(dict, prefix, Strict::No).unwrap();
    assert_eq!(report.to_string().is_empty(), report.is_empty());
}
