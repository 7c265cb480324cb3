"""The operations as Triton kernels. The only package that imports triton."""
