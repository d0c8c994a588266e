//! A pickle as `torch.save` writes it of tensors, and nothing else of pickle's language.
//!
//! A pickle is a program for a machine with a stack, which may name any function of Python's. This one
//! knows a fixed list of names, each of which stands for data here, and runs nothing: another name or
//! another instruction is refused. Objects live in one list and refer to each other by their places in
//! it, so that shared and cyclic ones cost nothing.
use std::collections::HashMap;

use safetensors::Dtype;

use super::PT;
use crate::{Error, Result};

/// An object of the pickle. Others are places in [`Pickle::objects`].
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object<'a> {
    /// None, a bool, a float, or the value of a call: nothing that a tensor needs.
    Opaque,
    Int(i64),
    Str(&'a str),
    /// A tuple or a list.
    Sequence(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Global(Global),
    /// The numbers of one or several tensors: an entry of the archive.
    Storage {
        dtype: Dtype,
        key: &'a str,
    },
    Tensor {
        storage: usize,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    },
}

/// The names that a pickle may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    /// `torch.FloatStorage`
    Storage(Dtype),
    /// `torch.float32`
    Dtype,
}

impl Global {
    fn find(module: &str, name: &str) -> Result<Self> {
        let storage = match name {
            "DoubleStorage" => Some(Dtype::F64),
            "FloatStorage" => Some(Dtype::F32),
            "HalfStorage" => Some(Dtype::F16),
            "BFloat16Storage" => Some(Dtype::BF16),
            "LongStorage" => Some(Dtype::I64),
            "IntStorage" => Some(Dtype::I32),
            "ShortStorage" => Some(Dtype::I16),
            "CharStorage" => Some(Dtype::I8),
            "ByteStorage" => Some(Dtype::U8),
            "BoolStorage" => Some(Dtype::BOOL),
            _ => None,
        };
        match (module, name, storage) {
            ("torch", _, Some(dtype)) => Ok(Self::Storage(dtype)),
            ("collections", "OrderedDict", _) => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2", _) => Ok(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter", _) => Ok(Self::RebuildParameter),
            ("torch", "Size", _) => Ok(Self::Size),
            ("torch", "float16" | "float32" | "float64" | "bfloat16" | "int64", _) => {
                Ok(Self::Dtype)
            }
            _ => {
                let reason = format!(
                    "it names {module}.{name}, which is not run: save the state_dict() alone, of \
                     tensors of f16, bf16, f32, f64, bool and integers"
                );
                Err(Error::unsupported(PT, reason))
            }
        }
    }
}

/// The objects, and which of them is the whole.
pub(super) struct Pickle<'a> {
    pub objects: Vec<Object<'a>>,
    pub root: usize,
}

impl<'a> Pickle<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut machine = Machine { bytes, ..Machine::default() };
        while !machine.step()? {}
        let root = machine.pop()?;
        Ok(Self { objects: machine.objects, root })
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    objects: Vec<Object<'a>>,
    stack: Vec<usize>,
    /// Where the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, usize>,
}

fn wrong(reason: impl ToString) -> Error {
    Error::malformed(PT, format!("pickle: {}", reason.to_string()))
}

impl<'a> Machine<'a> {
    /// One instruction; whether it was the last.
    fn step(&mut self) -> Result<bool> {
        match self.byte()? {
            b'.' => return Ok(true),
            0x80 => drop(self.byte()?),                      // PROTO
            0x95 => drop(self.take(8)?),                     // FRAME
            b'(' => self.marks.push(self.stack.len()),       // MARK
            b'0' => drop(self.pop()?),                       // POP
            b'N' | 0x88 | 0x89 => self.push(Object::Opaque), // NONE, NEWTRUE, NEWFALSE
            b'G' => {
                self.take(8)?; // BINFLOAT
                self.push(Object::Opaque);
            }
            b'J' => self.int(4)?, // BININT
            b'K' => {
                let value = self.byte()?; // BININT1
                self.push(Object::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.chunk()?); // BININT2
                self.push(Object::Int(value.into()));
            }
            0x8a => {
                let len = self.byte()?; // LONG1
                self.int(len.into())?;
            }
            b'X' => {
                let len = self.u32()?; // BINUNICODE
                self.text(len)?;
            }
            0x8c | b'U' => {
                let len = self.byte()?; // SHORT_BINUNICODE, SHORT_BINSTRING
                self.text(len.into())?;
            }
            b')' | b']' => self.push(Object::Sequence(Vec::new())), // EMPTY_TUPLE, EMPTY_LIST
            b'}' => self.push(Object::Dict(Vec::new())),            // EMPTY_DICT
            b't' => {
                let items = self.marked()?; // TUPLE
                self.push(Object::Sequence(items));
            }
            count @ 0x85..=0x87 => {
                let at = self.depth(usize::from(count) - 0x84)?; // TUPLE1, TUPLE2, TUPLE3
                let items = self.stack.split_off(at);
                self.push(Object::Sequence(items));
            }
            b'a' => {
                let item = self.pop()?; // APPEND
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.marked()?; // APPENDS
                self.append(items)?;
            }
            b's' => {
                let at = self.depth(2)?; // SETITEM
                let items = self.stack.split_off(at);
                self.set(items)?;
            }
            b'u' => {
                let items = self.marked()?; // SETITEMS
                self.set(items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?); // GLOBAL
                self.push(Object::Global(Global::find(module, name)?));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?); // STACK_GLOBAL
                let (module, name) = (self.str(module)?, self.str(name)?);
                self.push(Object::Global(Global::find(module, name)?));
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?); // REDUCE
                let value = self.call(function, arguments)?;
                self.stack.push(value);
            }
            // BUILD: the attributes of an object, which of dicts are `_metadata`: the versions of
            // their modules.
            b'b' => drop(self.pop()?),
            b'q' => {
                let at = self.byte()?; // BINPUT
                self.memoize(at.into())?;
            }
            b'r' => {
                let at = self.u32()?; // LONG_BINPUT
                self.memoize(at)?;
            }
            0x94 => self.memoize(self.memo.len() as u32)?, // MEMOIZE
            b'h' => {
                let at = self.byte()?; // BINGET
                self.recall(at.into())?;
            }
            b'j' => {
                let at = self.u32()?; // LONG_BINGET
                self.recall(at)?;
            }
            b'Q' => self.storage()?, // BINPERSID
            other => {
                let reason = format!("pickle: instruction {other:#04x} is not of a state dict");
                return Err(Error::unsupported(PT, reason));
            }
        }
        Ok(false)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or_else(|| wrong("cut off"))?;
        self.bytes = rest;
        Ok(taken)
    }
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(|| wrong("cut off"))?;
        self.bytes = rest;
        Ok(*taken)
    }
    fn byte(&mut self) -> Result<u8> {
        Ok(self.chunk::<1>()?[0])
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.chunk()?))
    }
    /// A number of `len` bytes in two's complement.
    fn int(&mut self, len: usize) -> Result<()> {
        let bytes = self.take(len)?;
        if len > 8 {
            return Err(Error::unsupported(PT, "pickle: an integer of more than 64 bits"));
        }
        let sign = if bytes.last().is_some_and(|&last| last >= 0x80) { 0xff } else { 0 };
        let mut all = [sign; 8];
        all[..len].copy_from_slice(bytes);
        self.push(Object::Int(i64::from_le_bytes(all)));
        Ok(())
    }
    fn text(&mut self, len: u32) -> Result<()> {
        let text = std::str::from_utf8(self.take(len as usize)?).map_err(wrong)?;
        self.push(Object::Str(text));
        Ok(())
    }
    fn line(&mut self) -> Result<&'a str> {
        let end = self.bytes.iter().position(|&byte| byte == b'\n');
        let line = self.take(end.ok_or_else(|| wrong("cut off"))?)?;
        self.byte()?;
        std::str::from_utf8(line).map_err(wrong)
    }

    fn push(&mut self, object: Object<'a>) {
        self.stack.push(self.objects.len());
        self.objects.push(object);
    }
    fn pop(&mut self) -> Result<usize> {
        self.stack.pop().ok_or_else(|| wrong("the stack is empty"))
    }
    /// Where the topmost `count` of the stack begin.
    fn depth(&self, count: usize) -> Result<usize> {
        self.stack.len().checked_sub(count).ok_or_else(|| wrong("the stack is empty"))
    }
    /// What was pushed since the last mark.
    fn marked(&mut self) -> Result<Vec<usize>> {
        let at = self.marks.pop().filter(|&at| at <= self.stack.len());
        Ok(self.stack.split_off(at.ok_or_else(|| wrong("no mark"))?))
    }
    fn top(&self) -> Result<usize> {
        self.stack.last().copied().ok_or_else(|| wrong("the stack is empty"))
    }
    fn append(&mut self, items: Vec<usize>) -> Result<()> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::Sequence(list) => list.extend(items),
            other => return Err(wrong(format_args!("an append to {other:?}"))),
        }
        Ok(())
    }
    fn set(&mut self, items: Vec<usize>) -> Result<()> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks();
        match &mut self.objects[top] {
            Object::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|&[k, v]| (k, v)))
            }
            other => return Err(wrong(format_args!("{} items for {other:?}", items.len()))),
        }
        Ok(())
    }
    fn memoize(&mut self, at: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(at, top);
        Ok(())
    }
    fn recall(&mut self, at: u32) -> Result<()> {
        let place = self.memo.get(&at).ok_or_else(|| wrong(format_args!("no memo {at}")))?;
        self.stack.push(*place);
        Ok(())
    }

    fn str(&self, place: usize) -> Result<&'a str> {
        match self.objects[place] {
            Object::Str(text) => Ok(text),
            ref other => Err(wrong(format_args!("expected a string, got {other:?}"))),
        }
    }
    fn size(&self, place: usize) -> Result<usize> {
        match self.objects[place] {
            Object::Int(value) => usize::try_from(value).map_err(wrong),
            ref other => Err(wrong(format_args!("expected a size, got {other:?}"))),
        }
    }
    fn sequence(&self, place: usize) -> Result<&[usize]> {
        match &self.objects[place] {
            Object::Sequence(items) => Ok(items),
            other => Err(wrong(format_args!("expected a tuple, got {other:?}"))),
        }
    }
    fn sizes(&self, place: usize) -> Result<Vec<usize>> {
        self.sequence(place)?.iter().map(|&item| self.size(item)).collect()
    }

    /// BINPERSID: `("storage", torch.FloatStorage, "0", "cpu", 96)`.
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let &[kind, class, key, _device, _count] = self.sequence(id)? else {
            return Err(wrong("expected a storage of five items"));
        };
        let dtype = match self.objects[class] {
            Object::Global(Global::Storage(dtype)) if self.str(kind)? == "storage" => dtype,
            ref other => return Err(wrong(format_args!("expected a storage, got {other:?}"))),
        };
        let key = self.str(key)?;
        self.push(Object::Storage { dtype, key });
        Ok(())
    }

    /// What a call of one of the known names stands for.
    fn call(&mut self, function: usize, arguments: usize) -> Result<usize> {
        let Object::Global(global) = self.objects[function] else {
            return Err(wrong(format_args!("a call of {:?}", self.objects[function])));
        };
        let items = self.sequence(arguments)?;
        let object = match (global, items) {
            (Global::OrderedDict, []) => Object::Dict(Vec::new()),
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                if !matches!(self.objects[storage], Object::Storage { .. }) {
                    return Err(wrong("a tensor without a storage"));
                }
                let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
                Object::Tensor { storage, offset: self.size(offset)?, shape, strides }
            }
            (Global::RebuildParameter, &[tensor, ..]) => return Ok(tensor),
            (Global::Size, &[dims]) => return Ok(dims),
            _ => return Err(wrong(format_args!("{} arguments of {global:?}", items.len()))),
        };
        self.objects.push(object);
        Ok(self.objects.len() - 1)
    }
}
