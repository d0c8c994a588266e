//! A stand-in for cuBLAS.
