// Dropout of bf16 values by the bits of a counter-based stream: `random.rs` and `kernel::drop_out`, word for word.

typedef unsigned long long u64;

__device__ u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

extern "C" __global__ void drop_out(
    const unsigned short *x, unsigned short *y, u64 count, u64 key, u64 threshold, float kept
) {
    u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) {
        return;
    }
    u64 bits = mix(key + (index + 1) * 0x9e3779b97f4a7c15ULL);
    float factor = bits < threshold ? 0.0f : kept;
    float value = __uint_as_float((unsigned)x[index] << 16) * factor;
    unsigned word = __float_as_uint(value);
    // To the nearest bf16, ties to even; what is no number stays none.
    word += 0x7fffu + ((word >> 16) & 1u);
    y[index] = value != value ? 0x7fc0 : (unsigned short)(word >> 16);
}
