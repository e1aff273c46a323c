"""SeamlessM4T's speech encoder: w2v-BERT layers, then an adapter that keeps one frame in eight.

The adapter's convolution reaches up to four frames past a clip's end, so clips are batched by equal length.
"""

from __future__ import annotations

from .frames import EncoderFrames


class SeamlessFrames(EncoderFrames):
    def output_lengths(self, length: int) -> list[int]:
        """The adapter's strided convolutions, half a kernel of padding on each side."""
        config = self.encoder.config
        for _ in range(config.num_adapter_layers if config.add_adapter else 0):
            kernel, stride = config.adaptor_kernel_size, config.adaptor_stride
            length = (length + 2 * (kernel // 2) - kernel) // stride + 1
        return [length]
