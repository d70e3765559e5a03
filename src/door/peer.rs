//! What other members may ask: pieces, chains, the swarm of a digest.
