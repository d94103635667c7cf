/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_VIEW_H
#define FERRY_VIEW_H

struct file;
struct vm_area_struct;

int ferry_view_mmap(struct file *file, struct vm_area_struct *vma);

#endif
