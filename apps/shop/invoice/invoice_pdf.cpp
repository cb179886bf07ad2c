#include "shop/invoice/invoice_pdf.hpp"

#include <cairo-pdf.h>
#include <pango/pangocairo.h>

#include <memory>
#include <stdexcept>

namespace shop {
namespace {

// A4 in points (1/72 inch).
constexpr double kPageWidth = 595.28;
constexpr double kPageHeight = 841.89;
constexpr double kMargin = 56.7;  // 20 mm
constexpr double kRight = kPageWidth - kMargin;
constexpr double kBottom = kPageHeight - kMargin;
constexpr double kColumnQuantity = 360;
constexpr double kColumnPrice = 450;

struct DestroySurface {
  void operator()(cairo_surface_t* surface) const { cairo_surface_destroy(surface); }
};
struct DestroyContext {
  void operator()(cairo_t* context) const { cairo_destroy(context); }
};

cairo_status_t append_to(void* out, const unsigned char* data, unsigned int size) {
  static_cast<std::string*>(out)->append(reinterpret_cast<const char*>(data), size);
  return CAIRO_STATUS_SUCCESS;
}

enum class Align { kToLeft, kToRight };

class Page {
 public:
  Page(std::string& out, const std::string& title, const std::string& date)
      : surface_(cairo_pdf_surface_create_for_stream(&append_to, &out, kPageWidth, kPageHeight)) {
    cairo_pdf_surface_set_metadata(surface_.get(), CAIRO_PDF_METADATA_TITLE, title.c_str());
    cairo_pdf_surface_set_metadata(surface_.get(), CAIRO_PDF_METADATA_CREATE_DATE,
                                   (date + "T00:00:00Z").c_str());
    context_.reset(cairo_create(surface_.get()));
  }

  double y() const { return y_; }
  void skip(double points) { y_ += points; }

  // Draws text with its right or left edge at x, wrapped to `width`; returns its height.
  double draw(double x, const std::string& text, double size, bool bold = false,
              Align align = Align::kToLeft, double width = 0) {
    PangoLayout* layout = pango_cairo_create_layout(context_.get());
    PangoFontDescription* font = pango_font_description_from_string("DejaVu Sans, sans-serif");
    pango_font_description_set_absolute_size(font, size * PANGO_SCALE);
    if (bold) pango_font_description_set_weight(font, PANGO_WEIGHT_BOLD);
    pango_layout_set_font_description(layout, font);
    pango_font_description_free(font);
    pango_layout_set_text(layout, text.data(), static_cast<int>(text.size()));
    if (width > 0) {
      pango_layout_set_width(layout, static_cast<int>(width * PANGO_SCALE));
      pango_layout_set_wrap(layout, PANGO_WRAP_WORD_CHAR);
    }
    int drawn_width = 0;
    int drawn_height = 0;
    pango_layout_get_size(layout, &drawn_width, &drawn_height);
    const double left =
        align == Align::kToRight ? x - static_cast<double>(drawn_width) / PANGO_SCALE : x;
    cairo_move_to(context_.get(), left, y_);
    pango_cairo_show_layout(context_.get(), layout);
    g_object_unref(layout);
    return static_cast<double>(drawn_height) / PANGO_SCALE;
  }

  void line(double x, const std::string& text, double size, bool bold = false) {
    y_ += draw(x, text, size, bold, Align::kToLeft, kRight - x) + 2;
  }

  void rule() {
    cairo_set_line_width(context_.get(), 0.5);
    cairo_move_to(context_.get(), kMargin, y_);
    cairo_line_to(context_.get(), kRight, y_);
    cairo_stroke(context_.get());
    y_ += 6;
  }

  // Starts a new page if less than `points` are left.
  void need(double points) {
    if (y_ + points <= kBottom) return;
    cairo_show_page(context_.get());
    y_ = kMargin;
  }

  void finish() {
    cairo_show_page(context_.get());
    context_.reset();
    cairo_surface_finish(surface_.get());
    const cairo_status_t status = cairo_surface_status(surface_.get());
    if (status != CAIRO_STATUS_SUCCESS) throw std::runtime_error(cairo_status_to_string(status));
  }

 private:
  std::unique_ptr<cairo_surface_t, DestroySurface> surface_;
  std::unique_ptr<cairo_t, DestroyContext> context_;
  double y_ = kMargin;
};

std::string percent_text(std::int64_t permille) {
  return std::to_string(permille / 10) +
         (permille % 10 != 0 ? "." + std::to_string(permille % 10) : "") + " %";
}

void draw_head(Page& page, const OrderPlaced& order, const std::string& number,
               const std::string& date, const Seller& seller) {
  page.line(kMargin, seller.name, 16, true);
  page.line(kMargin, seller.address, 9);
  page.line(kMargin, "Tax ID: " + seller.tax_id, 9);
  page.skip(28);
  page.line(kMargin, "Invoice " + number, 20, true);
  page.skip(6);
  page.line(kMargin, "Date: " + date, 10);
  page.line(kMargin, "Order: " + order.order_id, 10);
  page.skip(14);
  page.line(kMargin, "Bill to", 9, true);
  page.line(kMargin, order.customer, 11);
  page.line(kMargin, order.email, 10);
  page.skip(20);
}

void draw_lines(Page& page, const OrderPlaced& order) {
  page.draw(kMargin, "Item", 9, true);
  page.draw(kColumnQuantity, "Quantity", 9, true, Align::kToRight);
  page.draw(kColumnPrice, "Unit price", 9, true, Align::kToRight);
  page.skip(page.draw(kRight, "Amount", 9, true, Align::kToRight) + 4);
  page.rule();
  for (const auto& line : order.lines) {
    page.need(40);
    page.draw(kColumnQuantity, std::to_string(line.quantity), 10, false, Align::kToRight);
    page.draw(kColumnPrice, money_text(line.unit_price, order.currency), 10, false,
              Align::kToRight);
    page.draw(kRight, money_text(line.quantity * line.unit_price, order.currency), 10, false,
              Align::kToRight);
    page.skip(page.draw(kMargin, line.name, 10, false, Align::kToLeft, 240) + 4);
  }
  page.rule();
}

void draw_totals(Page& page, const OrderPlaced& order) {
  page.need(70);
  const auto total = [&](const std::string& label, std::int64_t amount, bool bold) {
    page.draw(kColumnPrice, label, 10, bold, Align::kToRight);
    page.skip(page.draw(kRight, money_text(amount, order.currency), 10, bold, Align::kToRight) + 4);
  };
  total("Net", order.net(), false);
  total("Tax " + percent_text(order.tax_permille), order.tax(), false);
  total("Total", order.total(), true);
}

}  // namespace

std::string render_invoice(const OrderPlaced& order, const std::string& number,
                           const std::string& date, const Seller& seller) {
  std::string out;
  Page page(out, "Invoice " + number, date);
  draw_head(page, order, number, date, seller);
  draw_lines(page, order);
  draw_totals(page, order);
  page.skip(30);
  page.need(20);
  page.line(kMargin, "Paid with thanks. Keep this invoice for your records.", 9);
  page.finish();
  return out;
}

}  // namespace shop
