//! Certificates made on the spot, for the tests of every module that speaks TLS.
