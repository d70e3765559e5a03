//! `flotilla certs`: a certificate authority and node certificates for people who have none.
