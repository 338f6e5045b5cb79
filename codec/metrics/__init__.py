"""Image quality: PSNR and LPIPS."""
