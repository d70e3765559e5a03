//! Metrics, health, status: for operators, on loopback and on a socket of our own.
