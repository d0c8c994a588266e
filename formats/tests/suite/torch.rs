//! PyTorch: prefixes, counters, and pickles that are more than tensors.
use std::io::{Cursor, Write};

use batchnorm::{DType, StateDict};
use batchnorm_formats::{Error, LayerState, torch};
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::support::{data, nth};

/// An archive with this pickle, and one storage of six f32.
fn pt(pickle: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    archive(&[("x/data.pkl", pickle), ("x/byteorder", b"little"), ("x/data/0", &numbers)])
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// `{"t": tensor}` with this offset, shape and stride, in the pickle's words.
fn tensor(offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}X\x01\0\0\0tctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    pickle.extend(b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ");
    pickle.extend([b'K', offset]);
    for sizes in [shape, strides] {
        pickle.push(b'(');
        sizes.iter().for_each(|&size| pickle.extend([b'K', size]));
        pickle.push(b't');
    }
    pickle.extend(b"\x89NtRs.");
    pickle
}

fn message<T: std::fmt::Debug>(result: batchnorm_formats::Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn names_go_with_and_without_the_prefix_of_data_parallel() {
    let wrapped = torch::read_pt(&data("torch_module_prefix.pt")).unwrap();
    let plain = torch::read_pt(&data("torch.pt")).unwrap();
    assert_eq!(torch::layers(&wrapped), ["module.bn1", "module.bn2"]);
    for dict in [&wrapped, &plain] {
        let [with, without] = ["module.bn1", "bn1"].map(|name| torch::layer(dict, name).unwrap());
        assert_eq!(with, without);
    }
    // Where both are there each name means its own.
    let mut both = wrapped.clone();
    both.insert("bn1.weight", &[1], &[5f32]).unwrap();
    assert_eq!(torch::layer(&both, "bn1").unwrap().weight, Some(vec![5.0]));
    assert_eq!(torch::layer(&both, "module.bn1"), torch::layer(&wrapped, "bn1"));
    let error = torch::layer(&plain, "bn3").unwrap_err();
    assert_eq!(error.to_string(), r#"no batch normalization "bn3"; there is "bn1", "bn2""#);
    // Of a layer's own state dict, without a prefix.
    let own = torch::layer(&plain, "bn1").unwrap().to_state_dict("").unwrap();
    assert_eq!(torch::layers(&own), [""]);
    assert_eq!(torch::layer(&own, ""), torch::layer(&plain, "bn1"));
}

#[test]
fn counters_of_any_type_load() {
    let mut dict = torch::read_pt(&data("torch.pt")).unwrap();
    dict.insert("bn1.num_batches_tracked", &[], &[7f32]).unwrap();
    assert_eq!(torch::layer(&dict, "bn1").unwrap().num_batches_tracked, Some(7));
    dict.insert("bn1.num_batches_tracked", &[1], &[half::f16::from_f64(8.0)]).unwrap();
    assert_eq!(torch::layer(&dict, "bn1").unwrap().num_batches_tracked, Some(8));
    dict.insert("bn1.num_batches_tracked", &[], &[0.5f64]).unwrap();
    let error = message(torch::layer(&dict, "bn1"));
    assert!(error.ends_with("expected one whole number from 0 to i64::MAX, got 0.5"), "{error}");
}

#[test]
fn tensors_of_other_layers_are_kept() {
    let mut dict = torch::read_pt(&data("torch.pt")).unwrap();
    let (shape, values) = dict.get::<f32>("conv.weight").unwrap().unwrap();
    assert_eq!((shape, values.len()), (&[6, 4, 2, 2][..], 96));
    let state = torch::layer(&dict, "bn1").unwrap();
    torch::set_layer(&mut dict, "bn1", &state).unwrap();
    assert_eq!(torch::read_pt(&torch::write_pt(&dict).unwrap()).unwrap(), dict);
}

#[test]
fn every_type_is_written_and_read() {
    let mut dict = StateDict::new();
    dict.insert("a", &[2, 1], &[1.5f64, -2.0]).unwrap();
    dict.insert("b", &[], &[half::bf16::from_f64(3.0)]).unwrap();
    dict.insert("c", &[0, 3], &[0f32; 0]).unwrap();
    dict.insert_count("n", i64::MAX as u64).unwrap();
    assert_eq!(torch::read_pt(&torch::write_pt(&dict).unwrap()).unwrap(), dict);
}

#[test]
fn views_are_gathered() {
    let read = |pickle: Vec<u8>| torch::read_pt(&pt(&pickle));
    let values = |dict: StateDict| dict.get::<f32>("t").unwrap().map(|(s, v)| (s.to_vec(), v));
    // Of 0 to 5: a transposed matrix, and a row behind an offset.
    let transposed = values(read(tensor(0, &[3, 2], &[1, 3])).unwrap());
    assert_eq!(transposed, Some((vec![3, 2], vec![0., 3., 1., 4., 2., 5.])));
    assert_eq!(values(read(tensor(4, &[2], &[1])).unwrap()), Some((vec![2], vec![4., 5.])));
    assert_eq!(values(read(tensor(5, &[3], &[0])).unwrap()), Some((vec![3], vec![5.; 3])));
    for (offset, shape, strides) in
        [(5, &[2][..], &[1][..]), (0, &[7], &[1]), (6, &[1], &[1]), (0, &[2, 3], &[4, 1])]
    {
        let error = message(read(tensor(offset, shape, strides)));
        assert!(error.contains("is not within its storage"), "{error}");
    }
    assert!(message(read(tensor(0, &[2, 3], &[1]))).contains("is not within its storage"));
    // No more than a file of this length justifies.
    let error = message(read(tensor(0, &[255, 255, 255], &[0, 0, 0])));
    assert_eq!(error, "pt: its tensors take more than 64 times its length");
}

#[test]
fn dicts_in_dicts_are_behind_their_names() {
    let mut pickle = b"\x80\x02}X\x0a\0\0\0state_dict".to_vec();
    let inner = tensor(0, &[6], &[1]);
    pickle.extend(&inner[2..inner.len() - 1]);
    pickle.extend(b"sX\x05\0\0\0epochK\x07s."); // and a number, which is no tensor
    let dict = torch::read_pt(&pt(&pickle)).unwrap();
    assert_eq!(dict.names().collect::<Vec<_>>(), ["state_dict.t"]);
}

#[test]
fn checkpoints_of_a_training_script() {
    for (file, prefix) in [("more_checkpoint.pt", "state_dict."), ("more_protocol_4.pt", "")] {
        let dict = torch::read_pt(&data(file)).unwrap();
        let names = [format!("{prefix}1"), format!("{prefix}2")];
        assert_eq!(torch::layers(&dict), names);
        let mut want = nth(1, 3, DType::F32);
        want.num_batches_tracked = Some(1);
        assert_eq!(torch::layer(&dict, &names[0]).unwrap(), want, "{file}");
        let mut want = nth(2, 3, DType::F32);
        (want.weight, want.bias, want.num_batches_tracked) = (None, None, Some(1));
        assert_eq!(torch::layer(&dict, &names[1]).unwrap(), want, "{file}");
    }
    let error = message(torch::read_pt(&data("more_module.pt")));
    assert!(error.contains("it names torch.nn.modules.container.Sequential"), "{error}");
    let error = message(torch::read_pt(&data("more_before_1_6.pt")));
    assert!(error.contains("of PyTorch before 1.6"), "{error}");
}

#[test]
fn what_is_no_state_dict_is_refused_in_words() {
    let refused = |pickle: &[u8]| message(torch::read_pt(&pt(pickle)));
    // What a hostile file would do.
    let error = refused(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.");
    assert!(error.starts_with("pt: it names os.system, which is not run"), "{error}");
    let error = refused(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.");
    assert!(error.starts_with("pt: it names builtins.eval, which is not run"), "{error}");
    // A whole module.
    let error = refused(b"\x80\x02ctorch.nn.modules.batchnorm\nBatchNorm2d\n)\x81.");
    assert!(error.contains("torch.nn.modules.batchnorm.BatchNorm2d"), "{error}");
    assert_eq!(refused(b"\x80\x02i."), "pt: pickle: instruction 0x69 is not of a state dict");
    assert_eq!(refused(b"\x80\x02K\x01."), "pt: expected a dict of tensors: save the state_dict()");
    assert_eq!(refused(b"\x80\x02."), "pt: pickle: the stack is empty");
    // A dict within itself.
    let error = refused(b"\x80\x02}q\0X\x01\0\0\0ah\0s.");
    assert_eq!(error, "pt: a dict that stands in others more than once");
    let error = message(torch::read_pt(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."));
    assert!(error.contains("of PyTorch before 1.6"), "{error}");
    let big = archive(&[("x/data.pkl", b"\x80\x02}."), ("x/byteorder", b"big")]);
    assert_eq!(message(torch::read_pt(&big)), "pt: of a big-endian machine");
    assert!(message(torch::read_pt(&archive(&[("x/y", b"")]))).contains("expected data.pkl"));
}

#[test]
fn a_narrower_type_in_the_file_is_kept() {
    let mut dict = torch::read_pt(&data("torch_half.pt")).unwrap();
    let mut state = torch::layer(&dict, "bn1").unwrap();
    state.dtype = DType::F64;
    state.weight.as_mut().unwrap()[0] = 1.0 + 2f64.powi(-20); // rounds to 1
    torch::set_layer(&mut dict, "bn1", &state).unwrap();
    let got: LayerState = torch::layer(&dict, "bn1").unwrap();
    assert_eq!((got.dtype, got.weight.unwrap()[0]), (DType::F16, 1.0));
    state.weight.as_mut().unwrap()[0] = 1e5; // f16 ends at 65504
    let error = torch::set_layer(&mut dict, "bn1", &state).unwrap_err();
    let expected = Error::Mismatch {
        name: "bn1.weight".into(),
        expected: "what f16 holds".into(),
        got: "100000".into(),
    };
    assert_eq!(error, expected);
}
