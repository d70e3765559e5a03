//! Who sends which piece to whom: the tracker and the exchange, as decisions without I/O.
