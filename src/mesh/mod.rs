//! Who is here, where a digest is tracked, and the connections to other members.
