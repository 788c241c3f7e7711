"""CapFilt: caption web images, rank all captions of an image, keep the best.

Section 4 of the paper: ten captions of each web image are sampled from a captioner,
ranked with the web caption by image-text similarity, and the best two are kept.
"""
