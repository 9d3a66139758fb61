"""PCL: Prototypical Contrastive Learning of Unsupervised Representations (Li et al., ICLR 2021)."""
