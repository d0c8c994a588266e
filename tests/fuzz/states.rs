//! State dicts of any bytes, and of files that torch wrote with changes in them.
use super::bytes::{Bytes, changed};
use crate::support::state::{bytes_of, load_anything};
use batchnorm::StateDict;

const FILES: [&[u8]; 10] = [
    include_bytes!("../state/float.safetensors"),
    include_bytes!("../state/half.safetensors"),
    include_bytes!("../state/bfloat16.safetensors"),
    include_bytes!("../state/double.safetensors"),
    include_bytes!("../state/network.safetensors"),
    include_bytes!("../state/version1.safetensors"),
    include_bytes!("../state/affine_false.safetensors"),
    include_bytes!("../state/bias_false.safetensors"),
    include_bytes!("../state/track_running_stats_false.safetensors"),
    include_bytes!("../state/expected.safetensors"),
];

pub fn run(input: &[u8]) {
    let mut input = Bytes(input);
    let kind = input.below(FILES.len() + 3);
    match kind.checked_sub(FILES.len()) {
        None => load_anything(&changed(FILES[kind], &mut input)),
        Some(0) => load_anything(input.rest()),
        Some(1) => load_anything(&bytes_of(&[], input.rest())),
        // Two of them in one, and the one's changes in what the other says.
        Some(_) => {
            let [a, b] = [0, 1].map(|_| FILES[input.below(FILES.len())]);
            let [mut a, b] = [a, b].map(|file| StateDict::from_bytes(file).expect("torch's own"));
            a.extend(b);
            load_anything(&changed(&a.to_bytes().expect("short names"), &mut input));
        }
    }
}
