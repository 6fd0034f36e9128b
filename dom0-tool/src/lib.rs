//! The backend as a library.
