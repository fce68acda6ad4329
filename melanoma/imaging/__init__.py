"""Image bytes become pixels. Knows no Ray and no Keras."""
