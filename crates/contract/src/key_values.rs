//! How much memory the keys and values of a context take: counted in one place for engines, which
//! refuse to start with less, and for the operator, which refuses the spec before they do.

/// Memory of a KV cache in MiB where neither an endpoint nor a flag says another.
pub const DEFAULT_MIB: u32 = 1024;

/// A block of a base model's KV cache, whose memory is taken in whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyValueBlock {
    bytes: u64,
    tokens: u64,
}

impl KeyValueBlock {
    /// A block of so many bytes for so many tokens; none where one of them is 0, as an older keeper
    /// leaves them.
    pub const fn new(bytes: u64, tokens: u64) -> Option<Self> {
        if bytes == 0 || tokens == 0 {
            return None;
        }
        Some(Self { bytes, tokens })
    }

    /// The same block with its values in 16 bits in place of 32.
    #[must_use]
    pub const fn in_halves(self) -> Self {
        Self {
            bytes: self.bytes / 2,
            tokens: self.tokens,
        }
    }

    /// Blocks that so many tokens need.
    pub const fn blocks_for(self, tokens: u64) -> u64 {
        tokens.div_ceil(self.tokens)
    }

    /// Blocks that so many bytes hold.
    pub const fn blocks_in(self, bytes: u64) -> u64 {
        bytes / self.bytes
    }

    /// Bytes that so many tokens need.
    pub const fn bytes_for(self, tokens: u64) -> u64 {
        self.blocks_for(tokens).saturating_mul(self.bytes)
    }

    /// Tokens that so many bytes hold.
    pub const fn tokens_in(self, bytes: u64) -> u64 {
        self.blocks_in(bytes).saturating_mul(self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_in_whole_blocks() {
        let block = KeyValueBlock::new(49_152, 16).unwrap();
        for (tokens, blocks) in [(0, 0), (1, 1), (16, 1), (17, 2), (512, 32)] {
            assert_eq!(block.blocks_for(tokens), blocks, "{tokens} tokens");
            assert_eq!(block.bytes_for(tokens), blocks * 49_152, "{tokens} tokens");
        }
        // Four layers with three heads of 32: 1 MiB is no context of 512.
        assert_eq!(block.tokens_in(1 << 20), 336);
        assert_eq!(block.tokens_in(block.bytes_for(512)), 512);
        assert_eq!(block.tokens_in(block.bytes_for(512) - 1), 496);
        assert_eq!(block.blocks_in(49_151), 0);
        assert_eq!(block.in_halves().tokens_in(1 << 20), 2 * 336);
    }

    #[test]
    fn what_a_keeper_leaves_out_is_not_known() {
        assert_eq!(KeyValueBlock::new(0, 16), None);
        assert_eq!(KeyValueBlock::new(49_152, 0), None);
    }
}
