//! Ranks come together, exchange in the order of their streams, and are told of what is wrong.
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    ptr::null_mut,
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut};
use libloading::Library;
use softnccl::Control;

type Comm = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
struct Id([u8; 128]);

/// As version 2.18 has it.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    rest: [u8; 28],
}

macro_rules! calls {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        struct Nccl(Library);
        #[allow(non_snake_case, clippy::too_many_arguments)]
        impl Nccl {
            $(fn $name(&self, $($argument: $type),*) -> u32 {
                // SAFETY: so the stand-in has it; the tests give it what it asks for.
                unsafe {
                    let call = self.0.get::<unsafe extern "C" fn($($type),*) -> u32>(stringify!($name));
                    call.unwrap()($($argument),*)
                }
            })*
        }
    };
}
calls! {
    ncclGetUniqueId(id: *mut Id);
    ncclCommInitRankConfig(comm: *mut Comm, ranks: c_int, id: Id, rank: c_int, config: *mut Config);
    ncclCommGetAsyncError(comm: Comm, state: *mut u32);
    ncclAllGather(from: u64, to: u64, count: usize, kind: c_int, comm: Comm, stream: *mut c_void);
    ncclAllReduce(from: u64, to: u64, count: usize, kind: c_int, op: c_int, comm: Comm, stream: *mut c_void);
    ncclCommFinalize(comm: Comm);
    ncclCommDestroy(comm: Comm);
    ncclCommAbort(comm: Comm);
}

const OK: u32 = 0;
const ARGUMENT: u32 = 4;
const USAGE: u32 = 5;
const IN_PROGRESS: u32 = 7;
const FLOAT: c_int = 7;
const DOUBLE: c_int = 8;

fn nccl() -> (&'static Control, Nccl) {
    softcuda::install().expect("the software device");
    let control = softnccl::install().expect("the library");
    // SAFETY: the library just installed, which the loader knows by this name.
    (control, Nccl(unsafe { Library::new("libnccl.so.2") }.unwrap()))
}

impl Nccl {
    fn id(&self) -> Id {
        let mut id = Id([0; 128]);
        assert_eq!(self.ncclGetUniqueId(&mut id), OK);
        id
    }
    fn begin(&self, ranks: usize, id: Id, rank: usize) -> (u32, Comm) {
        let (mut comm, rest) = (null_mut(), [0; 28]);
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21_800,
            blocking: 0,
            rest,
        };
        let at = (ranks as c_int, rank as c_int);
        (self.ncclCommInitRankConfig(&mut comm, at.0, id, at.1, &mut config), comm)
    }
    fn state(&self, comm: Comm) -> u32 {
        let mut state = 99;
        assert_eq!(self.ncclCommGetAsyncError(comm, &mut state), OK);
        state
    }
    /// Asks until it is done.
    fn settle(&self, comm: Comm) -> u32 {
        loop {
            match self.state(comm) {
                IN_PROGRESS => std::thread::sleep(Duration::from_millis(1)),
                state => return state,
            }
        }
    }
    fn end(&self, comm: Comm) {
        assert!([OK, IN_PROGRESS].contains(&self.ncclCommFinalize(comm)));
        assert_eq!(self.settle(comm), OK);
        assert_eq!(self.ncclCommDestroy(comm), OK);
    }
}

/// What every rank does, on a device and with a communicator of its own.
fn on_ranks(ranks: usize, turn: impl Fn(usize, &Arc<CudaStream>, &Nccl, Comm) + Sync) {
    let (control, first) = nccl();
    let (id, turn) = (first.id(), &turn);
    std::thread::scope(|scope| {
        for rank in 0..ranks {
            scope.spawn(move || {
                control.reset();
                let nccl = nccl().1;
                let stream = CudaContext::new(rank).unwrap().new_stream().unwrap();
                let (status, comm) = nccl.begin(ranks, id, rank);
                assert_eq!(status, IN_PROGRESS);
                assert_eq!(nccl.settle(comm), OK);
                turn(rank, &stream, &nccl, comm);
                assert_eq!(control.live(), [""; 0]);
            });
        }
    });
}

#[test]
fn sums_and_gathers_are_those_of_all_ranks() {
    on_ranks(3, |rank, stream, nccl, comm| {
        let raw = stream.cu_stream().cast();
        let mine = stream.clone_htod(&[rank as f32, 10.0]).unwrap();
        let mut sum = stream.alloc_zeros::<f32>(2).unwrap();
        let mut all = stream.alloc_zeros::<f64>(3).unwrap();
        let part = stream.clone_htod(&[rank as f64 + 0.5]).unwrap();
        {
            let ((from, _a), (to, _b)) = (mine.device_ptr(stream), sum.device_ptr_mut(stream));
            assert_eq!(nccl.ncclAllReduce(from, to, 2, FLOAT, 0, comm, raw), IN_PROGRESS);
            // It is not for the next call to be made before the last one is done.
            assert_eq!(nccl.ncclAllReduce(from, to, 2, FLOAT, 0, comm, raw), USAGE);
            assert_eq!(nccl.settle(comm), OK);
            let ((from, _a), (to, _b)) = (part.device_ptr(stream), all.device_ptr_mut(stream));
            assert_eq!(nccl.ncclAllGather(from, to, 1, DOUBLE, comm, raw), OK);
            assert_eq!(nccl.ncclAllGather(from, to, 0, DOUBLE, comm, raw), OK);
            assert_eq!(nccl.ncclAllReduce(from, to, 1, DOUBLE, 2, comm, raw), ARGUMENT); // max
            assert_eq!(nccl.ncclAllReduce(from, to, 1, 2, 0, comm, raw), ARGUMENT); // int
        }
        assert_eq!(stream.clone_dtoh(&sum).unwrap(), [3.0, 30.0]);
        assert_eq!(stream.clone_dtoh(&all).unwrap(), [0.5, 1.5, 2.5]);
        assert_eq!(nccl.ncclCommDestroy(comm), USAGE); // not before it is finalized
        nccl.end(comm);
    });
}

/// The last rank's stream comes to it late, behind work that nobody waits for.
#[test]
fn devices_of_late_ranks_are_kept_at_work() {
    let both = Barrier::new(2);
    on_ranks(2, |rank, stream, nccl, comm| {
        let raw = stream.cu_stream().cast();
        let mut sum = stream.alloc_zeros::<f64>(1).unwrap();
        if rank == 1 {
            for _ in 0..50 {
                stream.memset_zeros(&mut sum).unwrap();
            }
        }
        let at = sum.device_ptr_mut(stream).0;
        assert_eq!(nccl.ncclAllReduce(at, at, 1, DOUBLE, 0, comm, raw), IN_PROGRESS);
        assert_eq!(nccl.settle(comm), OK);
        if rank == 0 {
            stream.synchronize().unwrap();
        }
        both.wait(); // the other one has asked its device for nothing
        nccl.end(comm);
    });
}

#[test]
fn a_collective_without_its_peers_waits_until_it_is_aborted() {
    on_ranks(2, |rank, stream, nccl, comm| {
        let raw = stream.cu_stream().cast();
        let mut sum = stream.clone_htod(&[1.0; 3]).unwrap();
        let at = sum.device_ptr_mut(stream).0;
        // They come with two sizes.
        let status = nccl.ncclAllReduce(at, at, 2 + rank, DOUBLE, 0, comm, raw);
        assert_eq!(status, IN_PROGRESS);
        assert_eq!(nccl.settle(comm), OK);
        let begin = Instant::now();
        let event = stream.record_event(None).unwrap();
        while begin.elapsed() < Duration::from_millis(100) {
            assert!(!event.is_complete());
        }
        assert_eq!(nccl.ncclCommAbort(comm), OK);
        stream.synchronize().unwrap();
        let control = softnccl::install().unwrap();
        assert!(control.faults()[0].contains("count: 2"), "{:?}", control.faults());
    });
}

#[test]
fn what_is_no_world_is_refused() {
    let (control, nccl) = nccl();
    let _stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let id = nccl.id();
    assert_eq!(nccl.begin(2, Id([7; 128]), 0).0, ARGUMENT);
    assert_eq!(nccl.begin(2, id, 2).0, ARGUMENT);
    let (status, comm) = nccl.begin(2, id, 0);
    assert_eq!((status, nccl.state(comm)), (IN_PROGRESS, IN_PROGRESS));
    assert_eq!(nccl.begin(2, id, 1).0, USAGE); // on the same device
    assert_eq!(nccl.state(comm), USAGE);
    assert_eq!(nccl.begin(3, id, 1).0, USAGE); // of another size
    assert_eq!(nccl.ncclCommAbort(comm), OK);
    assert_eq!(nccl.ncclCommAbort(comm), ARGUMENT);
    assert_eq!(control.refusals().len(), 5, "{:?}", control.refusals());
}
