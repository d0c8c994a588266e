//! Says whether PTX files load, and what in them does not: `cargo run -p ptx-vm --example ptx_load -- FILE..`

use ptx_vm::Module;

fn main() {
    let mut refused = 0;
    for path in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        match Module::load(&text) {
            Ok(module) => println!(
                "{path}: {} kernels, {} variables",
                module.kernels().len(),
                module.variables().len()
            ),
            Err(error) => {
                refused += 1;
                println!("{path}: {error}");
            }
        }
    }
    std::process::exit(i32::from(refused > 0));
}
