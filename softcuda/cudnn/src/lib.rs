//! A stand-in for cuDNN.
