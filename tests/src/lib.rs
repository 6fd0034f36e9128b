//! Helpers of the whole-system tests. Each module says what it knows; none is part of the product.
#![forbid(unsafe_code)]

pub mod probe;
