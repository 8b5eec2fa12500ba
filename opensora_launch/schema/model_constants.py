"""Numbers that the networks use and the planner counts with. No config changes them."""

TIME_CHANNELS = 256  # channels of the timestep embedding
# rows x tokens that a block widens at once: a few hundred MB of activations, and products large enough for any GPU
TOKENS_AT_ONCE = 8192
HEAD_GROUPS = 4  # of a rank, whose results Ulysses sends back one after another
VAE_CHUNK_NUMBERS = 2**27  # numbers in the input or output of a VAE layer that are processed at once
FP8_LARGEST = 448.0  # the largest number of float8_e4m3fn
FP8_MULTIPLE = 16  # of the sizes of a matrix, in products in fp8 on GPUs
DC_AE_CONV_STAGES = 3  # stages of the Video DC-AE that convolve, counted from the pixels; the others attend
DC_AE_HEAD = 32  # channels of an attention head
DC_AE_WIDENED = 4  # the factor by which a gated convolution widens its channels
FP8_LARGEST = 448.0  # the largest number of float8_e4m3fn
