//! What ranks exchange.

use softlibrary::Number;

use super::on_rank;
use crate::{
    rank::call,
    status::{Refusal, Status},
    world::Kind,
};

/// Of `ncclDataType_t`.
fn number(data_type: u32) -> Result<Number, Refusal> {
    match data_type {
        7 => Ok(Number::F32),
        8 => Ok(Number::F64),
        other => {
            Status::INVALID_ARGUMENT.because(format!("data type {other} is not float or double"))
        }
    }
}

fn collective(
    name: &str,
    what: (Kind, u32, usize),
    places: (u64, u64),
    comm: usize,
    stream: usize,
) -> Status {
    let (kind, data_type, count) = what;
    call(name, || {
        on_rank(comm, |rank| {
            rank.collective((kind, number(data_type)?, count), places, stream)?;
            Ok(rank.connect())
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllGather(
    from: u64,
    to: u64,
    count: usize,
    data_type: u32,
    comm: usize,
    stream: usize,
) -> Status {
    collective("ncclAllGather", (Kind::Gather, data_type, count), (from, to), comm, stream)
}

/// Sums alone.
#[unsafe(no_mangle)]
extern "C" fn ncclAllReduce(
    from: u64,
    to: u64,
    count: usize,
    data_type: u32,
    operation: u32,
    comm: usize,
    stream: usize,
) -> Status {
    const NAME: &str = "ncclAllReduce";
    if operation != 0 {
        let reason = format!("operation {operation} is not the sum");
        return call(NAME, || Status::INVALID_ARGUMENT.because(reason));
    }
    collective(NAME, (Kind::Sum, data_type, count), (from, to), comm, stream)
}
