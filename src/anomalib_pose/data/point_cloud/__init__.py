# SPDX-License-Identifier: Apache-2.0
"""Point clouds with rendered views: file readers, items, batches, and datamodules of three data sets."""
