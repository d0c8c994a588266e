use super::{Memory, MemoryError};

fn bytes(memory: &Memory, address: u64, count: usize) -> Vec<u8> {
    let mut out = vec![0; count];
    memory.read(address, &mut out).unwrap();
    out
}

#[test]
fn what_is_written_is_read() {
    let mut memory = Memory::new(1 << 20);
    let a = memory.alloc(100).unwrap();
    assert_eq!(a % 256, 0);
    memory.write(a, &[7; 100]).unwrap();
    memory.write(a + 3, &[1, 2, 3]).unwrap();
    assert_eq!(bytes(&memory, a + 2, 5), [7, 1, 2, 3, 7]);
}

#[test]
fn a_byte_past_the_end_is_out_of_bounds() {
    let mut memory = Memory::new(1 << 20);
    let (a, b) = (memory.alloc(100).unwrap(), memory.alloc(100).unwrap());
    memory.write(a, &[7; 100]).unwrap();
    let error = memory.write(a + 99, &[1, 2]).unwrap_err();
    assert!(matches!(error, MemoryError::OutOfBounds { bytes: 2, .. }), "{error}");
    assert!(error.to_string().contains("0 bytes past the end of an allocation of 100"), "{error}");
    assert!(memory.read(a + 100, &mut [0]).is_err());
    assert!(memory.read(b - 1, &mut [0]).is_err());
    assert!(memory.copy(a, b, 101).is_err());
    assert!(memory.fill(a, 0, 4, 26).is_err());
    assert!(memory.fill(a, 0, 4, u64::MAX).is_err());
    assert!(memory.read(0, &mut [0]).is_err());
    // The failed accesses changed nothing.
    assert_eq!(bytes(&memory, a, 100), [7; 100]);
}

#[test]
fn bytes_never_written_are_named() {
    let mut memory = Memory::new(1 << 20);
    let a = memory.alloc(256).unwrap();
    memory.write(a, &[1; 10]).unwrap();
    memory.write(a + 12, &[1; 8]).unwrap();
    let mut out = [0; 24];
    let error = memory.read(a, &mut out).unwrap_err();
    let (address, count, bytes) = (a + 10, 6, 24);
    let near = memory.describe(address);
    assert_eq!(error, MemoryError::Uninitialised { address, near, count, bytes });
    assert!(error.to_string().contains("byte 10 of an allocation of 256 bytes"), "{error}");
    assert_eq!((out[9], out[12]), (1, 1));
    memory.fill(a + 8, 0xab, 1, 8).unwrap();
    assert!(memory.read(a, &mut out[..20]).is_ok());
    assert_eq!(out[..8], [1; 8]);
    assert_eq!(out[8..16], [0xab; 8]);
}

#[test]
fn a_fill_repeats_its_pattern() {
    let mut memory = Memory::new(1 << 20);
    let a = memory.alloc(16).unwrap();
    memory.fill(a, 0x0403_0201, 4, 2).unwrap();
    memory.fill(a + 8, 0xbeef, 2, 3).unwrap();
    let want = [1, 2, 3, 4, 1, 2, 3, 4, 0xef, 0xbe, 0xef, 0xbe, 0xef, 0xbe];
    assert_eq!(bytes(&memory, a, 14), want);
    assert!(memory.read(a, &mut [0; 15]).is_err());
}

#[test]
fn a_copy_takes_along_what_was_never_written() {
    let mut memory = Memory::new(1 << 20);
    let (a, b) = (memory.alloc(8).unwrap(), memory.alloc(8).unwrap());
    memory.write(a, &[1, 2, 3, 4]).unwrap();
    memory.write(b, &[9; 8]).unwrap();
    memory.copy(b + 1, a + 2, 4).unwrap();
    assert_eq!(bytes(&memory, b, 3), [9, 3, 4]);
    assert!(memory.read(b + 3, &mut [0]).is_err());
    assert_eq!(bytes(&memory, b + 5, 3), [9; 3]);
    // Overlapping, within one allocation.
    memory.copy(a + 1, a, 4).unwrap();
    assert_eq!(bytes(&memory, a, 5), [1, 1, 2, 3, 4]);
}

#[test]
fn capacity_and_high_water_are_kept() {
    let mut memory = Memory::new(1024);
    let a = memory.alloc(300).unwrap();
    assert_eq!(memory.used(), 512);
    assert_eq!(memory.alloc(513), Err(MemoryError::OutOfMemory { bytes: 513, free: 512 }));
    assert_eq!(
        memory.alloc(u64::MAX).unwrap_err().to_string().split(':').next(),
        Some("out of memory")
    );
    assert_eq!(memory.alloc(0), Err(MemoryError::Empty));
    let b = memory.alloc(512).unwrap();
    assert_eq!(memory.allocations().collect::<Vec<_>>(), [(a, 300), (b, 512)]);
    memory.free(a).unwrap();
    memory.free(b).unwrap();
    assert_eq!((memory.used(), memory.high_water()), (0, 1024));
    assert_eq!(memory.allocations().count(), 0);
}

#[test]
fn what_is_freed_is_gone() {
    let mut memory = Memory::new(1024);
    let a = memory.alloc(300).unwrap();
    assert_eq!(memory.find(a + 299), Some((a, 300)));
    assert_eq!(memory.find(a + 300), None);
    assert!(memory.free(a + 1).is_err());
    memory.free(a).unwrap();
    let error = memory.free(a).unwrap_err();
    assert!(error.to_string().contains("was freed"), "{error}");
    let error = memory.read(a + 5, &mut [0]).unwrap_err();
    assert!(error.to_string().contains("byte 5 of an allocation of 300 bytes that was freed"));
    assert_ne!(memory.alloc(300).unwrap(), a);
}

#[test]
fn memory_can_be_had_at_an_address_and_again() {
    let mut memory = Memory::new(1024);
    let at = 0x5100_0000_0000;
    memory.alloc_at(at, 300).unwrap();
    memory.write(at, &[1; 300]).unwrap();
    let below = at - 0x1000;
    memory.alloc_at(below, 16).unwrap();
    assert_eq!(memory.allocations().collect::<Vec<_>>(), [(below, 16), (at, 300)]);
    assert!(memory.alloc_at(at + 256, 16).is_err(), "taken");
    assert!(memory.alloc_at(at + 0x1001, 16).is_err(), "not aligned");
    assert!(memory.alloc_at(at + 0x1000, 512).is_err(), "too much");
    assert_eq!(memory.used(), 768);
    memory.free(at).unwrap();
    memory.alloc_at(at, 300).unwrap();
    assert!(memory.read(at, &mut [0]).is_err(), "what was there before is gone");
    assert!(memory.alloc(257).is_err_and(|e| e.to_string().contains("out of memory")));
    memory.free(below).unwrap();
    assert!(memory.alloc(256).unwrap() > at);
}
